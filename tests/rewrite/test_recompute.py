from __future__ import annotations

import copy
import gc

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from densekd.layers import ABN
from densekd.layers.esp import ESPDown
from densekd.rewrite import recompute_norms, to_inplace


class Kept:
    """Bytes of the distinct storages that autograd keeps of what a forward makes (not its parameters)."""

    def __init__(self, network: nn.Module) -> None:
        self.own = {t.untyped_storage().data_ptr() for t in network.state_dict().values()}

    def __call__(self, loss: torch.Tensor) -> int:
        found: dict[int, int] = {}
        nodes, seen = [loss.grad_fn], set()
        while nodes:
            node = nodes.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            nodes += [n for n, _ in node.next_functions]
            for name in dir(node):
                if name.startswith("_raw_saved_"):
                    for saved in as_list(getattr(node, name)):
                        try:
                            data = saved.data
                        except RuntimeError:  # an empty place
                            continue
                        if hasattr(data, "content"):
                            data = getattr(data.content, "tensor", None)
                        if isinstance(data, torch.Tensor):
                            storage = data.untyped_storage()
                            found[storage.data_ptr()] = storage.nbytes()
        return sum(size for address, size in found.items() if address not in self.own)


def as_list(value):
    return value if isinstance(value, tuple | list) else [value]


def flat(output) -> torch.Tensor:
    if isinstance(output, torch.Tensor):
        return output
    values = output.values() if isinstance(output, dict) else output
    return torch.cat([v.flatten() for v in values])


def step(network, x, **options):
    """Output, gradients and buffers of a training step; gradient of the input too."""
    torch.manual_seed(1)  # dropout
    network.zero_grad()
    x = x.detach().clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, **options):
        out = flat(network(x))
    out.float().square().mean().backward()
    return {
        "out": out.detach(),
        "x": x.grad,
        **{k: p.grad.clone() for k, p in network.named_parameters() if p.grad is not None},
        **{k: b.clone() for k, b in network.named_buffers()},
    }


def assert_equal(found, expected) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def odd_(network):
    """Weights of norms of both signs, and zeros, where they would all be 1 as they come."""
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                module.weight.copy_(torch.randn(module.num_features, generator=g))
                module.weight[::5] = 0
                module.bias.copy_(torch.randn(module.num_features, generator=g))
    return network


NETWORKS = {
    "torchvision resnet18": lambda: torchvision.models.resnet18(num_classes=5),
    "torchvision mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(num_classes=5),
    "torchvision densenet": lambda: torchvision.models.DenseNet(8, (2, 2), 8, num_classes=5),
    **{
        f"timm {name}": lambda name=name: timm.create_model(name, num_classes=5)
        for name in (
            "resnet18",
            "mobilenetv2_100",
            "tf_efficientnet_lite0",
            "efficientnet_b0",
            "resnetv2_50",
        )
    },
    "timm features": lambda: timm.create_model("mobilenetv2_100", features_only=True),
    "ESP": lambda: nn.Sequential(ESPDown(3, 20), ESPDown(20, 40)),
}
# What is kept, over what the plain way keeps; the rest is norms' inputs and sums of branches.
KEPT = {
    "torchvision resnet18": 0.75,
    "timm resnet18": 0.75,
    "torchvision densenet": 0.62,
    "timm resnetv2_50": 0.57,
    "timm mobilenetv2_100": 0.4,
    "timm features": 0.4,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_give_the_same_and_keep_less(name) -> None:
    torch.manual_seed(0)
    plain = odd_(NETWORKS[name]())
    ours = to_inplace(copy.deepcopy(plain))
    assert list(ours.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 3, 64, 48)
    assert_equal(step(ours, x, enabled=False), step(plain, x, enabled=False))
    torch.manual_seed(1)
    kept = [Kept(n)(flat(n(x)).sum()) for n in (ours, plain)]
    assert kept[0] < KEPT.get(name, 0.53) * kept[1]
    for network in (ours, plain):
        network.eval()
    assert_equal(step(ours, x, enabled=False), step(plain, x, enabled=False))


@pytest.mark.parametrize("name", ["torchvision resnet18", "timm efficientnet_b0", "ESP"])
def test_bf16_and_channels_last(name) -> None:
    torch.manual_seed(0)
    plain = odd_(NETWORKS[name]()).to(memory_format=torch.channels_last)
    ours = to_inplace(copy.deepcopy(plain))
    x = torch.randn(2, 3, 64, 48).to(memory_format=torch.channels_last)
    assert_equal(step(ours, x), step(plain, x))


class Block(nn.Module):
    """A norm's result that is summed in place, one ReLU for all, a tap's tensor, a skip connection."""

    def __init__(self, **norm) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(4, **norm) for _ in range(3))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        z = self.bn2(self.conv2(y))
        z += y
        z = self.relu(z)
        u = self.bn3(self.conv3(z))
        v = F.leaky_relu(u, 0.2) * torch.sigmoid(u) + F.elu(u)
        return torch.cat(
            [F.max_pool2d(v, 2), F.avg_pool2d(y, 2), F.interpolate(v, scale_factor=0.5)]
        )


@pytest.mark.parametrize(
    "norm",
    [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.1}],
    ids=str,
)
def test_a_tangled_block(norm) -> None:
    torch.manual_seed(0)
    plain = odd_(Block(**norm))
    ours = to_inplace(copy.deepcopy(plain))
    x = torch.randn(2, 4, 8, 8)
    for network in (plain, ours):
        network.train()
    for _ in range(2):
        assert_equal(step(ours, x, enabled=False), step(plain, x, enabled=False))
    for network in (plain, ours):
        network.eval()
    assert_equal(step(ours, x, enabled=False), step(plain, x, enabled=False))


def test_second_derivatives_and_a_graph_that_is_used_twice() -> None:
    torch.manual_seed(0)
    plain = odd_(Block()).double()
    found = []
    for network in (plain, to_inplace(copy.deepcopy(plain))):
        x = torch.linspace(-1, 1, 2 * 4 * 8 * 8, dtype=torch.float64).view(2, 4, 8, 8).sin()
        x.requires_grad_()
        out = network(x).square().sum()
        first = torch.autograd.grad(out, x, retain_graph=True)[0]
        again = torch.autograd.grad(out, x, create_graph=True)[0]
        assert torch.equal(first, again)
        second = torch.autograd.grad(again.square().sum(), list(network.parameters()))
        found.append([first, *second])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def conv_norm(after: nn.Module, channels: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), after, nn.Conv2d(channels, 2, 1)
    )


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Hardswish, nn.GELU, nn.Mish, nn.PReLU,
        nn.Identity,
    ],
)  # fmt: skip
@pytest.mark.parametrize("inplace", [False, True])
def test_every_activation_keeps_the_input_of_its_norm_alone(activation, inplace) -> None:
    torch.manual_seed(0)
    if inplace and activation in (nn.GELU, nn.PReLU):
        pytest.skip("has no form in place")
    plain = odd_(conv_norm(activation(**({"inplace": True} if inplace else {}))))
    ours = to_inplace(copy.deepcopy(plain))
    x = torch.randn(2, 4, 6, 6) * 3
    assert_equal(step(ours, x, enabled=False), step(plain, x, enabled=False))
    of_a_map = x.nbytes
    assert Kept(ours)(ours(x).sum()) < 2 * of_a_map + of_a_map / 2  # the image and the norm's input


def test_a_changed_input_of_a_norm_is_still_an_error() -> None:
    network = conv_norm(nn.ReLU())
    held = []
    network[0].register_forward_hook(lambda module, args, output: held.append(output))
    out = to_inplace(network)(torch.randn(2, 4, 6, 6))
    held[0].detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_result_changed_in_place_is_kept_as_it_became() -> None:
    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x):
            y = F.relu(self.bn(x)).mul(2)
            z = self.bn(x)
            z.mul_(3)
            w = self.bn(x).sigmoid_()
            return torch.cat([y * y, F.silu(z), w * w])

    plain = odd_(Changed())
    ours = to_inplace(copy.deepcopy(plain))
    x = torch.randn(2, 4, 6, 6)
    assert_equal(step(ours, x, enabled=False), step(plain, x, enabled=False))


def test_hooks_see_the_same_and_copies_save_too() -> None:
    torch.manual_seed(0)
    network = to_inplace(to_inplace(conv_norm(nn.ReLU())))  # twice is once
    seen = []
    network[2].register_forward_hook(lambda module, args, output: seen.append(output))
    x = torch.randn(2, 4, 6, 6)
    out = network(x)
    torch.testing.assert_close(network[3](seen[0]), out)
    (out.sum() + seen[0].square().sum()).backward()
    twin = copy.deepcopy(network)
    kept = [Kept(n)(n(x).sum()) for n in (network, twin)]
    assert kept[0] == kept[1] < Kept(twin)(conv_norm(nn.ReLU())(x).sum())


def test_nothing_is_left_on_after_an_error_and_nothing_is_leaked() -> None:
    class Fails(nn.Module):
        def forward(self, x):
            raise KeyError("inside")

    with pytest.raises(KeyError):
        to_inplace(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), Fails()))(torch.randn(2, 4, 6, 6))
    assert torch.overrides._get_current_function_mode_stack() == []
    network = to_inplace(conv_norm(nn.ReLU()))
    maps = []
    network[0].register_forward_hook(
        lambda module, args, output: maps.append(StorageWeakRef(output.untyped_storage()))
    )
    gc.disable()  # reference counts alone must free a forward that has no backward
    try:
        out = network(torch.randn(2, 4, 6, 6))
        assert not maps[0].expired()
        del out
        assert maps[0].expired()
    finally:
        gc.enable()


def test_a_forward_that_was_interrupted_ends_with_the_next() -> None:
    class Interrupted(nn.Module):
        def forward(self, x):
            if x.shape[0] == 3:
                raise KeyboardInterrupt
            return x

    network = to_inplace(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), Interrupted()))
    with pytest.raises(KeyboardInterrupt):
        network(torch.randn(3, 4, 6, 6))
    network(torch.randn(2, 4, 6, 6)).sum().backward()
    assert torch.overrides._get_current_function_mode_stack() == []


def test_compiled() -> None:
    network = to_inplace(conv_norm(nn.ReLU()))
    x = torch.randn(2, 4, 6, 6)
    expected = step(network, x, enabled=False)
    network[1].reset_running_stats()
    network.compile(backend="aot_eager", fullgraph=True)
    found = step(network, x, enabled=False)
    for name in ("out", "x", "0.weight", "1.weight"):
        torch.testing.assert_close(found[name], expected[name])


def test_without_gradients_nothing_is_recorded() -> None:
    network = to_inplace(conv_norm(nn.ReLU()))
    with torch.no_grad():
        assert not network(torch.randn(2, 4, 6, 6)).requires_grad
    with recompute_norms(), recompute_norms():
        assert network(torch.randn(2, 4, 6, 6)).requires_grad


def test_with_checkpoints() -> None:
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(conv_norm(nn.ReLU())[:3] for _ in range(2))

        def forward(self, x):
            return self.parts[1](checkpoint(self.parts[0], x, use_reentrant=False))

    torch.manual_seed(0)
    plain = Checkpointed()
    ours = to_inplace(copy.deepcopy(plain))
    x = torch.randn(2, 4, 6, 6)
    assert_equal(step(ours, x, enabled=False), step(plain, x, enabled=False))


def test_with_activated_norms() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 1), ABN(4, activation="identity"), nn.ReLU(), nn.Conv2d(4, 4, 1), ABN(4), nn.Conv2d(4, 2, 1)
    )  # fmt: skip
    ours = to_inplace(copy.deepcopy(plain))
    x = torch.randn(2, 3, 6, 6)
    assert_equal(step(ours, x, enabled=False), step(plain, x, enabled=False))
