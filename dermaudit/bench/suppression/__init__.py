"""Methods of suppression side by side, cross-fitted on the embeddings of a run."""
