"""Results written in the formats of other tools; each writer takes an iterable of results."""
