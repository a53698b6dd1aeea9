"""The verdict of a run: which artifacts its own head leans on, and whether suppression helps."""
