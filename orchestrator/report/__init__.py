"""The report: one page, its tables and figures, and the same numbers as JSON."""
