"""Memory and work of a run, counted without training, and dry runs that check whether it can start."""
