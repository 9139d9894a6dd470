"""Tensor operations that know no network, task or loss."""
