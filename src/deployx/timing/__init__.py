"""When work falls due: pure calendar arithmetic and decisions, without a database, a clock or any I/O."""
