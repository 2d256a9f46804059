"""Statistics on arrays of numbers; they know no trial."""
