"""Folded norms: the same function, fewer operations, and whoever looks sees what he saw."""

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from densekd.layers import ABN
from densekd.models import espnet, fcos_resnet50, psp_timm, pspnet_resnet18
from densekd.models.taps import Taps
from densekd.rewrite.fold import fold_norms, tensors

IMAGES = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(1))


def fill(model: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and scales as training leaves them, some scales below 0; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(getattr(module, "running_var", None), Tensor):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.weight is not None:
                module.weight.data.normal_(0.7, 0.5, generator=generator)
                module.bias.data.normal_(0, 0.5, generator=generator)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(getattr(m, "running_var", None), Tensor) for m in model.modules())


def check(model: nn.Module, folded: int, images: Tensor = IMAGES) -> None:
    """`folded` norms go, and on other images than those it was folded with the answer is the same."""
    before = norms(model)
    with torch.no_grad():
        expected = [x.clone() for x in tensors(model(images))]
    assert fold_norms(model, torch.rand_like(images[:1])) == folded
    assert norms(model) == before - folded
    with torch.no_grad():
        for now, then in zip(tensors(model(images)), expected, strict=True):
            torch.testing.assert_close(now, then, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.Conv2d(3, 8, 3, bias=False, padding=2, dilation=2, padding_mode="reflect"),
        nn.Conv2d(3, 6, 3, groups=3, bias=False),
        nn.ConvTranspose2d(3, 8, 2, stride=2),
        nn.ConvTranspose2d(3, 6, 3, stride=2, groups=3, bias=False, output_padding=1),
    ],
)
@pytest.mark.parametrize(
    "make",
    [
        nn.BatchNorm2d,
        lambda c: nn.BatchNorm2d(c, affine=False),
        ABN,
        lambda c: ABN(c, activation="elu"),
        lambda c: ABN(c, activation="identity"),
        lambda c: BatchNormAct2d(c, act_layer=nn.SiLU),
        FrozenBatchNorm2d,
    ],
    ids=["bn", "plain", "abn", "elu", "identity", "timm", "frozen"],
)
def test_every_pair(conv, make):
    torch.manual_seed(0)
    check(fill(nn.Sequential(conv, make(conv.out_channels), nn.ReLU())), 1)


class Wired(nn.Module):
    """A convolution, a norm, and `more`, which has both outputs."""

    def __init__(self, more) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.more = more

    def forward(self, x: Tensor):
        raw = self.conv(x)
        return self.more(raw, self.norm(raw), self)


WIRED = {
    "used again": (lambda raw, y, m: raw + y, 0),
    "a view of it": (lambda raw, y, m: raw[:, :2] + y[:, 2:], 0),
    "returned": (lambda raw, y, m: {"raw": raw, "out": y}, 0),
    "norm runs twice": (lambda raw, y, m: m.norm(y), 0),
    "convolution runs twice": (lambda raw, y, m: m.conv(torch.cat([y[:, :2]] * 2, 1)[:, :3]), 0),
    "used as it should": (lambda raw, y, m: y.relu(), 1),
    "changed in place afterwards": (lambda raw, y, m: y.relu_(), 1),
}


@pytest.mark.parametrize("name", WIRED)
def test_who_else_looks(name):
    more, folded = WIRED[name]
    check(fill(Wired(more)), folded)


def test_taps_see_what_they_saw():
    """A tap on the convolution forbids folding; one on the norm goes on firing."""
    first = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    second = nn.Sequential(nn.Conv2d(4, 4, 1), BatchNormAct2d(4))
    third = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1)), ABN(4))
    model = fill(nn.Sequential(first, second, third))
    taps = Taps(model, {"conv": "0.0", "norm": "1.1", "act": "1.1.act", "inner": "2.0"})
    check(taps, 1)
    with torch.no_grad():
        features = taps(IMAGES).features
    torch.testing.assert_close(features["norm"], features["act"])
    taps = Taps(model, {"third": "2"})
    check(taps, 0)  # the older taps' hooks still watch the rest


def test_hooks_on_a_bare_network_count_too():
    model = fill(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    handle = model[1].register_forward_pre_hook(lambda module, given: None)
    assert fold_norms(model, IMAGES) == 0
    handle.remove()
    assert fold_norms(model, IMAGES) == 1


def test_weights_that_are_made_in_the_forward_are_left():
    class Standardised(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return self._conv_forward(input, weight / weight.std(), self.bias)

    check(fill(nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4))), 0)
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    check(fill(nn.Sequential(normed, nn.BatchNorm2d(4))), 0)


def test_norms_without_statistics_and_other_types_are_left():
    check(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval(), 0)
    check(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)).eval(), 0)
    half = fill(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))).bfloat16()
    assert fold_norms(half, IMAGES.bfloat16()) == 0


def test_shared_modules_are_replaced_everywhere():
    block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    model = fill(nn.ModuleDict({"a": block, "b": nn.Sequential(block[1])}))
    model.forward = lambda x: model["a"](x)  # pyrefly: ignore[missing-attribute]
    check(model, 1)
    assert isinstance(model["b"][0], nn.Identity)


def test_mode_and_memory_format_stay():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).to(
        memory_format=torch.channels_last
    )
    model[1].eval()
    assert fold_norms(model, IMAGES) == 1
    assert model.training
    assert model[0].training
    assert not model[1].training
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("make", "tap", "folded"),
    [
        (lambda: pspnet_resnet18(5, width=0.125), "pspmodule", 28),  # all but the auxiliary head's
        (lambda: espnet(5, p=1, q=1), "b3", 4),  # most of its norms follow a concatenation
        (lambda: psp_timm("mobilenetv3_small_050", 5, psp_channels=16), "pyramid", None),
        (lambda: fcos_resnet50(3, frozen_backbone=True, pyramid_channels=64), "fpn:*", 53),
    ],
    ids=["pspnet", "espnet", "timm", "fcos"],
)
def test_networks(make, tap, folded):
    torch.manual_seed(0)
    taps = Taps(fill(make()), {"x": tap}).eval()
    if folded is None:
        folded = norms(taps) - 1
    images = torch.rand(1, 3, 64, 96)
    check(taps, folded, images)
