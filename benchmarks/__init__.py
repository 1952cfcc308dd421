"""Benchmarks: what mdp does, beside what the raw clients do in the same run. ``make bench``; docs/performance.md."""
