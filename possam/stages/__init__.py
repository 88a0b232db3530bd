"""The stages of the pipeline: each joins parameters and paths to the parts that do the work."""
