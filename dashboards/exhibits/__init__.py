"""Pure functions from a run to a table or a figure."""
