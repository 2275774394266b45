"""Training: the loop, optimisers, checkpoints, the run folder and what the user sees of it."""
