"""Faults by the hundred, and what must hold after each: `make chaos`."""
