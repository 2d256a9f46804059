"""What the results of a sweep say: summaries, contrasts, and checks of its windows."""
