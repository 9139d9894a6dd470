"""Samples decoded once, kept in memory or on disk."""

from densekd.data.cache.store import CachedSet, cached

__all__ = ["CachedSet", "cached"]
