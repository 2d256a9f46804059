"""The sweep file: its keys, how it is read, and how it is checked."""
