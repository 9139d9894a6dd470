"""Surgery on networks: norms folded, computed again in backward, or taken over all ranks."""

from densekd.rewrite.fold import fold_norms
from densekd.rewrite.recompute import recompute_norms, to_inplace
from densekd.rewrite.synchronise import synchronise

__all__ = ["fold_norms", "recompute_norms", "synchronise", "to_inplace"]
