"""The folder of a sweep on disk: journal, lease, weights, logs."""
