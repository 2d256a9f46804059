"""The training loop, its state, evaluation and checkpoints."""
