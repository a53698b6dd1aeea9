"""Suppression at inference: predictions for any number of images, and suppressors for other people's models."""
