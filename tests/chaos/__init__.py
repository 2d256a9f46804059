"""Sweeps under hundreds of random faults, with checks of their results: `make chaos`."""
