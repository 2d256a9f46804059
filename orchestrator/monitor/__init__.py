"""Progress of a run on screen, in MLflow and in messages."""
