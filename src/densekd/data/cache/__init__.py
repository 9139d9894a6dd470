"""Samples decoded once, kept in memory or on disk."""

from densekd.data.cache.cached_set import CachedSet
from densekd.data.cache.store import cached

__all__ = ["CachedSet", "cached"]
