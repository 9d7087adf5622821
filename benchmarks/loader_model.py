"""Sizes of the small ViT that the benchmarks of loading extract with and train."""

IMAGE_SIZE = 64
PATCH_SIZE = 16
BATCH_SIZE = 128
