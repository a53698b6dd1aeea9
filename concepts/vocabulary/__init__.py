"""Typed concept vocabularies."""
