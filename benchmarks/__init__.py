"""Benchmarks: what this project does fast, beside what a user would run instead, in one run."""
