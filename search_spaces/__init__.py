"""Sweep files that come with the program: `vitc-sweep examples` lists and copies them."""
