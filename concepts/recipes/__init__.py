"""The recipe file: its format, weights, signature, comparison, and a reference of it in numpy."""
