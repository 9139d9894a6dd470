"""Surgery on networks: norms folded, computed again in backward, or taken over all ranks; layers that round to int8."""

from densekd.rewrite.fold import fold_norms
from densekd.rewrite.int8 import constants, is_int8, to_int8, unseen_layers
from densekd.rewrite.recompute import recompute_norms, to_inplace
from densekd.rewrite.synchronise import synchronise

__all__ = [
    "constants",
    "fold_norms",
    "is_int8",
    "recompute_norms",
    "synchronise",
    "to_inplace",
    "to_int8",
    "unseen_layers",
]
