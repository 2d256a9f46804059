"""Verifiable reports: sealing, verification, bundles and comparisons."""
