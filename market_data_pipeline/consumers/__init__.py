"""Consumers: what a partition's events become, and the one mechanism that keeps it exactly once."""
