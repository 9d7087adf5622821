"""Units: clusters of the frames of sounds, for HuBERT's objective."""
