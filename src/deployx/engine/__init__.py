"""What moves the spine: the clock, the dispatcher, the rescuer, and the supervisor that keeps them going."""
