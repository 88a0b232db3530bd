"""Figures drawn from arrays and numbers; nothing here knows a model or a data set."""
