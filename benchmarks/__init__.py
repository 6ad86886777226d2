"""Side-by-side measurements: `make bench-NAME` runs one, prints its table, writes its results."""
