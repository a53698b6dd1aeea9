"""The run directory: its files, its stages, and the checks that its inputs are unchanged."""
