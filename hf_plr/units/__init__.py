"""Units: clusters of the frames of recordings, for HuBERT's objective."""
