"""Measuring scripts; what they found is told in docs/benchmarks.md."""
