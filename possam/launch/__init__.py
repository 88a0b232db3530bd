"""Trainings as SLURM jobs: frozen sources, submission, waiting, and what goes on after a fault."""
