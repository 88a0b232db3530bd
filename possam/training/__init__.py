"""Training on top of frozen towers: targets, matching, losses, sources, checkpoints, the loop."""
