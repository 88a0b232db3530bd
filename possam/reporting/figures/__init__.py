"""Figures drawn from images, segments and numbers; nothing here runs a model."""
