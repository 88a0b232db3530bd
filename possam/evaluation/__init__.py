"""Metrics, their per-image statistics and intervals, and the evaluation of runs and predictions."""
