"""Does refinement help? The whole training loop, with and without it, from the same start, over several seeds."""
