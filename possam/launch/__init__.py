"""Trainings as SLURM jobs: frozen sources, submission, waiting, and recovery from faults."""
