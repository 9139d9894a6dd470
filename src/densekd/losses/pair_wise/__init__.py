"""The pair-wise term. `function` is entered first; `gram` and `rows` are two ways to compare the graphs."""

from densekd.losses.pair_wise.function import PairWise, pair_wise
from densekd.losses.pair_wise.nodes import pool_nodes

__all__ = ["PairWise", "pair_wise", "pool_nodes"]
