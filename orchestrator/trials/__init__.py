"""The trials of a sweep: what is planned, and what is known of it afterwards."""
