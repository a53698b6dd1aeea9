"""Captions and what can be made of them: sentences, concepts, text views (`data subcaptions`)."""
