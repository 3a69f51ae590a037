"""The database's schema over time; each revision is one file, applied in order at start."""
