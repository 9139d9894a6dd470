"""The pair-wise term."""

from densekd.losses.pair_wise.function import PairWise, pair_wise, pool_nodes

__all__ = ["PairWise", "pair_wise", "pool_nodes"]
