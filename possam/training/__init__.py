"""Training over frozen towers: targets, matching, losses, sources, checkpoints, the loop."""
