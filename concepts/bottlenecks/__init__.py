"""Concept bottlenecks at an equal number of effective concepts."""
