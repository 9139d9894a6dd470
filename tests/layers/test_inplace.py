from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from densekd.layers import ABN, inplace_abn

FUNCTIONS = {
    "leaky_relu": lambda x: F.leaky_relu(x, 0.01),
    "elu": F.elu,
    "identity": lambda x: x,
}


def given(dtype=torch.float64, shape=(3, 4, 5, 6), channels_last=False):
    g = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=g) * 2 + 1).to(dtype)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    wide = torch.promote_types(dtype, torch.float32)
    scale = (torch.rand(shape[1], generator=g) + 0.5).to(wide)
    bias = torch.randn(shape[1], generator=g).to(wide)
    return tuple(v.detach().requires_grad_() for v in (x, scale, bias))


def results(norm, arguments, weights):
    """Output, gradients and running statistics."""
    arguments = tuple(v.detach().clone().requires_grad_() for v in arguments)
    running = [torch.zeros_like(arguments[1]).detach(), torch.ones_like(arguments[1]).detach()]
    out = norm(*arguments, *running)
    (out * weights).sum().backward()
    return [out, *(v.grad for v in arguments), *running]


def plain(function):
    return lambda x, scale, bias, mean, var: function(
        F.batch_norm(x, mean, var, scale, bias, True, 0.1, 1e-5)
    )


def ours(activation, **options):
    return lambda x, scale, bias, mean, var: inplace_abn(
        x, scale, bias, mean, var, activation=activation, **options
    )


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("activation", FUNCTIONS)
def test_equals_batch_norm_and_activation(activation, channels_last) -> None:
    arguments = given(torch.float32, (4, 8, 9, 7), channels_last)
    weights = torch.randn(4, 8, 9, 7)
    expected = results(plain(FUNCTIONS[activation]), arguments, weights)
    found = results(ours(activation), arguments, weights)
    assert torch.equal(found[0], expected[0])
    assert found[0].is_contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_gradcheck(activation) -> None:
    arguments = given(shape=(2, 3, 2, 3))
    assert torch.autograd.gradcheck(
        lambda *a: inplace_abn(*a, activation=activation, slope=0.2), arguments
    )


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5), (2, 4, 1, 1), (2, 4, 3, 2, 2)])
def test_any_number_of_dimensions(shape) -> None:
    arguments, weights = given(shape=shape), torch.randn(shape)
    for a, b in zip(
        results(ours("leaky_relu"), arguments, weights),
        results(plain(FUNCTIONS["leaky_relu"]), arguments, weights),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_half_precision() -> None:
    """As near to float64 as batch norm and leaky ReLU in bfloat16 are, within a factor of four."""
    arguments, weights = given(torch.bfloat16, (4, 8, 16, 16)), torch.randn(4, 8, 16, 16)
    exact = results(plain(FUNCTIONS["leaky_relu"]), [v.double() for v in arguments], weights)
    half = results(plain(FUNCTIONS["leaky_relu"]), arguments, weights)
    found = results(ours("leaky_relu"), arguments, weights)
    assert torch.equal(found[0], half[0])
    assert found[1].dtype == torch.bfloat16
    for a, b, c in zip(found, half, exact, strict=True):
        assert (a - c).norm() <= 4 * (b - c).norm() + 1e-6 * c.norm()


def test_small_scales_lose_digits_and_no_more() -> None:
    x, _, bias = given(torch.float32)
    weights = torch.randn(x.shape)
    scale = torch.tensor([1e-5, 1e-3, 0.1, 10.0])
    expected = results(plain(FUNCTIONS["leaky_relu"]), (x, scale, bias), weights)
    found = results(ours("leaky_relu"), (x, scale, bias), weights)
    for channel, tolerance in enumerate((5e-2, 1e-3, 1e-5, 1e-5)):
        for i in (1, 2, 3):  # gradients
            a, b = (v[i][:, channel] if i == 1 else v[i][channel] for v in (found, expected))
            assert (a - b).norm() <= tolerance * (1 + b.norm()), (channel, i)


def test_elu_far_below_zero_stays_finite() -> None:
    x = torch.cat(
        [torch.zeros(1, 1, 20, 50), torch.full((1, 1, 1, 1), -1e4).expand(1, 1, 1, 50)], 2
    )
    x = x.requires_grad_()
    out = inplace_abn(x, torch.full((1,), 9.0), torch.zeros(1), activation="elu")
    assert (out == -1).any()
    out.sum().backward()
    assert x.grad.isfinite().all()


def test_the_input_is_left_alone_and_not_kept() -> None:
    arguments = given(torch.float32)
    before = arguments[0].detach().clone()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.data_ptr()) or t, lambda t: t
    ):
        out = inplace_abn(*arguments)
    assert torch.equal(arguments[0], before)
    assert out.data_ptr() in kept
    assert arguments[0].data_ptr() not in kept


def test_a_changed_output_is_an_error() -> None:
    out = inplace_abn(*given())
    out.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_there_is_no_second_derivative() -> None:
    arguments = given()
    (gradient,) = torch.autograd.grad(
        inplace_abn(*arguments).square().sum(), arguments[0], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_arguments_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="'relu'; expected one of"):
        inplace_abn(*given(), activation="relu")
    with pytest.raises(ValueError, match="slope is 0"):
        inplace_abn(*given(), slope=0)


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_the_module_equals_the_plain_way(activation) -> None:
    """Weights of both signs and 0, running statistics, evaluation afterwards."""
    norm = ABN(4, activation=activation)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([-1.5, 0.0, 0.3, 2.0]))
    mean, var = torch.zeros(4), torch.ones(4)
    for _ in range(2):
        x = torch.randn(3, 4, 5, 6)
        y = F.batch_norm(x, mean, var, norm.weight.abs() + 1e-5, norm.bias, True)
        assert torch.equal(norm(x), FUNCTIONS[activation](y))
    assert torch.equal(norm.running_mean, mean)
    assert torch.equal(norm.running_var, var)
    y = F.batch_norm(x, mean, var, norm.weight.abs() + 1e-5, norm.bias)
    assert torch.equal(norm.eval()(x), FUNCTIONS[activation](y))


@pytest.mark.parametrize(
    ("activation", "slope", "dtype"),
    [("elu", 1.0, torch.bfloat16), ("leaky_relu", 0.0, torch.float32)],
)
def test_what_cannot_be_inverted_keeps_its_input(activation, slope, dtype) -> None:
    norm = ABN(4, activation=activation, slope=slope)
    x = torch.randn(3, 4, 5, 6, dtype=dtype, requires_grad=True)
    out = norm(x)
    assert type(out.grad_fn).__name__ != "_NormBackward"
    out.float().sum().backward()
    assert norm.weight.grad.isfinite().all()
