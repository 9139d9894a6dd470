"""densekd: knowledge distillation for dense prediction.

Importing the package loads nothing heavy; import from the rooms, e.g. ``from densekd.losses import pair_wise``.
"""

__version__ = "0.1.0"
