"""Ranking scores, bootstrap intervals, and paired tests between models."""
