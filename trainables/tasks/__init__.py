"""Tasks: the loss that a network learns from, and the error that judges it."""
