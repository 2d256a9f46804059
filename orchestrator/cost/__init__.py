"""The cost of a sweep: memory, seconds and hours, planned and spent."""
