from __future__ import annotations

import pytest
import torch

from densekd.layers.attention import SelfAttention2d
from tests.golden_rule import golden_shapes


def test_starts_as_the_identity():
    x = torch.randn(2, 16, 3, 5)
    assert torch.equal(SelfAttention2d(16)(x), x)


def test_keys_and_shapes_are_the_authors():
    shapes = {k: list(v.shape) for k, v in SelfAttention2d(256).state_dict().items()}
    golden = {k[6:]: v for k, v in golden_shapes("discriminator").items() if k.startswith("attn1.")}
    assert shapes == golden


@pytest.mark.parametrize("channels", [1, 4, 24])
@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_equals_softmax_over_keys(channels, size):
    layer = SelfAttention2d(channels)
    torch.nn.init.constant_(layer.gamma, 0.7)
    x = torch.randn(2, channels, *size)
    query, key, value = (
        conv(x).flatten(2) for conv in (layer.query_conv, layer.key_conv, layer.value_conv)
    )
    weights = torch.einsum("ncq,nck->nqk", query, key).softmax(-1)
    expected = 0.7 * torch.einsum("nqk,nck->ncq", weights, value).view_as(x) + x
    torch.testing.assert_close(layer(x), expected)


def test_gradgradcheck():
    layer = SelfAttention2d(3).double()
    torch.nn.init.constant_(layer.gamma, 0.7)
    x = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(layer, x)
    torch.autograd.gradgradcheck(layer, x)
