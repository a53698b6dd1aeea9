"""Suppression of concepts: choice of latents, measured effects, recipes, predictions."""
