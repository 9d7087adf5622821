"""Backbones of images and sounds: how they are loaded, pooled, frozen and adapted."""
