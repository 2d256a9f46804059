"""The trials of a sweep: which ones are planned, and what the journal records of them."""
