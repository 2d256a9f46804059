"""Networks and their costs."""
