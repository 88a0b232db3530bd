"""Conversion of upstream data sets to one on-disk format; its reader, validator and loader."""
