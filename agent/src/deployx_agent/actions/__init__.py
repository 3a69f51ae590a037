"""What orders do on the device: one module for each kind of work, and what they share."""
