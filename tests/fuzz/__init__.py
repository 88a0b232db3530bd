"""Fuzzing of every reader of files that others wrote: ``python -m tests.fuzz --help``."""
