"""Benchmarks: speed and memory of PosSAM beside what a user would run instead."""
