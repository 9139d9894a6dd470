"""What a network costs: parameters and multiply-accumulates."""

from densekd.profiling.cost import count_macs, count_parameters

__all__ = ["count_macs", "count_parameters"]
