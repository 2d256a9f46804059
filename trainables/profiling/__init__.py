"""Runs that are counted and tried without training."""
