"""Upstream layouts to the one on-disk format; its reader, validator, loader and augmentation."""
