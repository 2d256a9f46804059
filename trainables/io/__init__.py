"""Reading of YAML, faults in input files, and storage."""
