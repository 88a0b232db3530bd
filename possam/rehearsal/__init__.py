"""A short job that tries everything a study needs before the study spends its GPU-hours."""
