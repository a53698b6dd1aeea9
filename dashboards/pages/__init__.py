"""The pages of the explorer. They arrange exhibits and compute nothing."""
