from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from densekd.layers import ABN


def test_scale_is_the_absolute_weight_plus_eps() -> None:
    norm = ABN(2, activation="identity", eps=0.1)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([-2.0, 0.0]))
        norm.bias.copy_(torch.tensor([1.0, 0.0]))
    x = torch.randn(3, 2, 4, 5)
    y = norm.eval()(x)
    torch.testing.assert_close(y[:, 0], x[:, 0] / 1.1**0.5 * 2.1 + 1)
    torch.testing.assert_close(y[:, 1], x[:, 1] / 1.1**0.5 * 0.1)


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("identity", lambda x: x),
        ("leaky_relu", lambda x: F.leaky_relu(x, 0.01)),
        ("elu", F.elu),
    ],
)
def test_training_equals_batch_norm_for_positive_weights(activation, function) -> None:
    ours, plain = ABN(4, activation=activation), torch.nn.BatchNorm2d(4)
    x = torch.randn(3, 4, 5, 6)
    torch.testing.assert_close(ours(x), function(plain(x)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.running_mean, plain.running_mean)
    torch.testing.assert_close(ours.running_var, plain.running_var)


def test_unknown_activation() -> None:
    with pytest.raises(ValueError, match=r"'relu'; expected one of"):
        ABN(4, activation="relu")


def test_keys_and_files_with_and_without_a_counter() -> None:
    norm = ABN(4)
    state = norm.state_dict()
    assert set(state) == {"weight", "bias", "running_mean", "running_var"}
    norm.load_state_dict(dict(state), strict=True)
    with_counter = {**state, "num_batches_tracked": torch.tensor(3)}
    norm.load_state_dict(with_counter, strict=True)
    assert "num_batches_tracked" in with_counter  # the caller's own dict is left alone
    with pytest.raises(RuntimeError, match="Missing key"):
        norm.load_state_dict({"weight": state["weight"]}, strict=True)


def test_one_value_a_channel_uses_the_running_statistics() -> None:
    norm = ABN(4, activation="identity").train()
    x = torch.randn(1, 4, 1, 1)
    torch.testing.assert_close(norm(x), x, atol=1e-4, rtol=1e-4)
    assert (norm.running_mean == 0).all()
