"""Checkpoints: complete or recognised as incomplete, with the state and the settings of the run beside the weights."""
