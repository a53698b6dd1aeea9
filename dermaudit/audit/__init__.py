"""The commands `audit` and `demo`: every stage of a run, one after the other."""
