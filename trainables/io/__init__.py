"""YAML with places, faults of an input, and storage."""
