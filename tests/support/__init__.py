"""Fakes, builders, oracles and helper programs of the tests."""
