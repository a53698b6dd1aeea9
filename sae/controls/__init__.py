"""Dictionaries that a trained SAE must be compared with."""
