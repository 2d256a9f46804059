"""Running trials: the session, the Coordinator, lanes and their workers, and the preflight."""
