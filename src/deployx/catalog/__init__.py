"""What can be run on devices."""
