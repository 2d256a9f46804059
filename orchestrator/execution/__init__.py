"""Running trials: who runs what, on which worker, and who writes it down."""
