from __future__ import annotations

import pytest
import torch

from densekd.layers import PyramidPooling
from densekd.layers.pyramid import GridPool


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (65, 65)])
def test_shape(size: tuple[int, int]) -> None:
    layer = PyramidPooling(6, 4).eval()
    assert layer(torch.rand(2, 6, *size)).shape == (2, 4, *size)


def test_keys_are_the_authors() -> None:
    keys = set(PyramidPooling(6, 4).state_dict())
    norm = ("weight", "bias", "running_mean", "running_var")
    expected = {f"stages.{i}.1.weight" for i in range(4)} | {"bottleneck.0.weight"}
    expected |= {f"stages.{i}.2.{n}" for i in range(4) for n in norm}
    expected |= {f"bottleneck.1.{n}" for n in norm}
    assert keys == expected


def test_a_constant_map_stays_constant() -> None:
    # Without its border, where the 3x3 convolution sees zeros.
    y = PyramidPooling(6, 4).eval()(torch.full((1, 6, 9, 9), 0.7))[..., 1:-1, 1:-1]
    torch.testing.assert_close(y, y[..., :1, :1].expand_as(y))


def test_batch_of_one_trains() -> None:
    PyramidPooling(6, 4).train()(torch.rand(1, 6, 5, 7)).sum().backward()


def test_an_exported_grid_is_the_adaptive_mean_at_every_size():
    pool = GridPool(6)
    free = {"input": {2: torch.export.Dim("h", min=2), 3: torch.export.Dim("w", min=2)}}
    program = torch.export.export(pool, (torch.rand(1, 2, 12, 16),), dynamic_shapes=free).module()
    for size in ((12, 16), (13, 29), (4, 7), (6, 90)):
        images = torch.rand(1, 2, *size)
        expected = torch.nn.AdaptiveAvgPool2d(6)(images)
        assert torch.equal(pool(images), expected)
        assert torch.allclose(program(images), expected, atol=1e-6)
