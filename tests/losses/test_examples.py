from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name",
    [
        "pixel_wise",
        "pair_wise.function",
        "conventions",
        "depth_cross_entropy",
        "feature_mimic",
        "silog",
        "virtual_normal",
        "attention_transfer",
        "channel_affinity",
        "channel_wise",
        "class_affinity",
        "cross_image",
        "cross_image_memory",
        "decoupled",
        "dist",
        "fitnet",
        "intra_class",
        "localization",
        "masked_generative",
        "pearson_features",
        "similarity_preserving",
    ],
)
def test_the_docstring_runs(name):
    result = doctest.testmod(importlib.import_module(f"densekd.losses.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
