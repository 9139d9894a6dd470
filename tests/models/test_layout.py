"""Tokens and channels-last maps become (N, C, h, w), and only where it is clear how they lie."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from densekd.errors import UserError
from densekd.models import Taps, list_taps
from densekd.models.layout import as_map, patch_size, token_grid


@pytest.mark.parametrize(
    ("tokens", "image", "patch", "grid"),
    [
        (196, (224, 224), 16, (14, 14)),
        (197, (224, 224), 16, (14, 14)),  # a class token
        (1374, (518, 518), 14, (37, 37)),  # a class token and four registers
        (24, (64, 96), 16, (4, 6)),
        (29, (64, 96), 16, (4, 6)),
        (29, (60, 100), 16, (4, 7)),  # padded to whole patches
        (18, (60, 100), 16, (3, 6)),  # cropped to whole patches
        (64, (256, 256), 4, (8, 8)),  # Swin's last stage
        (300, (512, 512), 16, None),  # a detector's queries
        (197, (224, 224), None, (14, 14)),
        (17, (48, 48), None, None),  # 4x4 and a class token, or 3x3 and eight more
        (3, (64, 64), None, None),
    ],
)
def test_the_grid_follows_or_does_not(tokens, image, patch, grid):
    assert token_grid(tokens, image, patch) == grid


def test_tokens_keep_their_places():
    places = torch.arange(24).float().view(4, 6)
    tokens = torch.cat([torch.full((1, 2, 1), -1.0), places.reshape(1, 24, 1)], dim=1)
    assert torch.equal(as_map(tokens, (64, 96), 16), places[None, None])


@pytest.mark.parametrize(
    "shape", [(2, 5, 4, 4), (2, 4, 4, 4), (2, 4, 6, 8), (2, 7, 1, 1), (2, 3, 9, 5)]
)
def test_channels_first_and_unclear_maps_stay(shape):
    x = torch.rand(shape)
    assert as_map(x, (64, 64) if shape[2] == shape[3] else (48, 64), None) is x


def test_channels_last_maps_turn():
    x = torch.rand(2, 4, 6, 32)
    assert torch.equal(as_map(x, (64, 96), 16), x.permute(0, 3, 1, 2))


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (60, 90)])
def test_a_vit_gives_maps(size):
    network = timm.create_model(
        "test_vit2", num_classes=4, reg_tokens=4, dynamic_img_size=True, dynamic_img_pad=True
    ).eval()
    assert patch_size(network) == 16
    assert network.num_prefix_tokens > 1  # registers too
    images = torch.rand(2, 3, *size)
    found = Taps(network, {"f": "blocks.1"})(images).features["f"]
    with torch.no_grad():
        (wanted,) = network.get_intermediate_layers(images, n=1, reshape=True)
    h, w = -(-size[0] // 16), -(-size[1] // 16)
    assert found.shape == wanted.shape == (2, found.shape[1], h, w)
    torch.testing.assert_close(found, wanted)
    found.sum().backward()  # gradients pass


def test_a_swin_gives_maps():
    network = timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=4, embed_dim=12, depths=(1, 1, 1, 1),
        num_heads=(1, 1, 1, 1), img_size=64, window_size=2,
    )  # fmt: skip
    taps = {f"s{i}": f"layers.{i}" for i in range(4)}
    features = Taps(network.eval(), taps)(torch.rand(2, 3, 64, 64)).features
    assert [tuple(x.shape) for x in features.values()] == [
        (2, 12, 16, 16), (2, 24, 8, 8), (2, 48, 4, 4), (2, 96, 2, 2),
    ]  # fmt: skip
    strides = {row.path: row.stride for row in list_taps(network, torch.rand(1, 3, 64, 64))}
    assert [strides[f"layers.{i}"] for i in range(4)] == [4, 8, 16, 32]


class Tokens(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 16, 16)
        self.mix = nn.Identity()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        self.mix(x.flatten(2).transpose(1, 2)[:, : self.count])
        return x


def test_a_grid_that_does_not_follow_is_an_error():
    assert Taps(Tokens(16), {"f": "mix"})(torch.rand(1, 3, 64, 64)).features["f"].shape[2:] == (
        4,
        4,
    )
    with pytest.raises(UserError, match=r"'mix' gives tokens \(1, 3, 8\).*64x64.*grid"):
        Taps(Tokens(3), {"f": "mix"})(torch.rand(1, 3, 64, 64))
    rows = {row.path: row for row in list_taps(Tokens(3), torch.rand(1, 3, 64, 64))}
    assert (rows["mix"].shape, rows["mix"].stride) == ((1, 3, 8), None)


def test_maps_of_tokens_compile_and_copy():
    network = timm.create_model("test_vit", num_classes=4, img_size=64).eval()
    tapped = Taps(network, {"f": "blocks.1"})
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        plain = tapped(images).features["f"]
        copied = copy.deepcopy(tapped)(images).features["f"]
        tapped.compile(backend="eager", fullgraph=True)
        compiled = tapped(images).features["f"]
    assert plain.shape[2:] == (4, 4)
    torch.testing.assert_close(copied, plain)
    torch.testing.assert_close(compiled, plain)
