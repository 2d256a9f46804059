"""What tests and their fabricated sweeps are made of: sweep files as trees, plans, rows and records."""
