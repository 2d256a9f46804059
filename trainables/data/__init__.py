"""Data sets, their splits, and the order in which images are read."""
