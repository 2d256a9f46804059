"""Statistics on arrays of numbers, independent of trials and sweeps."""
