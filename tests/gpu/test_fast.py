"""What was written for speed or memory, on CUDA: the CPU's or the plain way's numbers."""

import copy
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from densekd.data import Augment, DeviceLoader, SceneSet, TrainLoader
from densekd.layers import ABN
from densekd.losses import cross_entropy, ohem_cross_entropy, pixel_wise
from densekd.models import pspnet_resnet18
from densekd.ops.argmax import argmax_map
from densekd.ops.resize import resize_map
from densekd.rewrite import to_inplace
from densekd.rewrite.fold import fold_norms

pytestmark = pytest.mark.gpu

N, K, SMALL, LARGE = 2, 40, (24, 32), (192, 256)


def maps(seed, device, size=SMALL):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(N, K, *size, generator=generator)).to(device)


def labels(device):
    target = torch.randint(0, K, (N, *LARGE), generator=torch.Generator().manual_seed(9))
    target[:, :20] = 255
    return target.to(device)


@pytest.mark.parametrize("loss", [cross_entropy, ohem_cross_entropy])
def test_losses_on_upsampled_logits(loss, cuda, monkeypatch):
    monkeypatch.setattr("densekd.losses._upsampled._BAND_ELSEWHERE", 2**18)
    found = []
    for upsampled in (False, True):
        x = maps(0, cuda).requires_grad_()
        value = loss(resize_map(x, LARGE) if upsampled else x, labels(cuda))
        value.backward()
        found.append((value.detach(), x.grad))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=0)
    assert (found[0][1] - found[1][1]).norm() <= 1e-4 * found[1][1].norm()


def test_divergence_of_upsampled_logits(cuda, monkeypatch):
    monkeypatch.setattr("densekd.losses._upsampled._BAND_ELSEWHERE", 2**18)
    mask = labels(cuda) != 255
    found = []
    for upsampled in (False, True):
        s, t = maps(0, cuda).requires_grad_(), maps(1, cuda)
        if upsampled:
            value = pixel_wise(resize_map(s, LARGE), resize_map(t, LARGE), mask=mask)
        else:
            value = pixel_wise(s, t, size=LARGE, mask=mask)
        value.backward()
        found.append((value.detach(), s.grad))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=0)
    assert (found[0][1] - found[1][1]).norm() <= 1e-4 * found[1][1].norm()


@pytest.mark.parametrize("classes", [2, 19, 300])
def test_class_map_of_upsampled_scores(classes, cuda):
    scores = torch.randn(1, classes, 17, 23, generator=torch.Generator().manual_seed(2)).to(cuda)
    assert torch.equal(
        argmax_map(scores, (131, 180)).long(), resize_map(scores, (131, 180)).argmax(1)
    )


@pytest.mark.parametrize("activation", ["leaky_relu", "elu", "identity"])
def test_norm_that_keeps_its_output(activation, cuda):
    torch.manual_seed(0)
    norm = ABN(8, activation=activation).to(cuda)
    with torch.no_grad():
        norm.weight.uniform_(-2, 2)
    x, weight = torch.randn(4, 8, 9, 7, device=cuda), torch.randn(4, 8, 9, 7, device=cuda)
    found = []
    for plain in (False, True):
        mine = x.clone().requires_grad_()
        norm.zero_grad()
        if plain:
            y = F.batch_norm(
                mine, None, None, norm.weight.abs() + norm.eps, norm.bias, training=True
            )
            y = {
                "leaky_relu": lambda v: F.leaky_relu(v, 0.01),
                "elu": F.elu,
                "identity": lambda v: v,
            }[activation](y)
        else:
            y = norm(mine)
        (y * weight).sum().backward()
        found.append([y.detach(), mine.grad, norm.weight.grad.clone(), norm.bias.grad.clone()])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_recomputed_norms_keep_values_and_save_memory(cuda):
    torch.manual_seed(0)
    plain = nn.Sequential(
        *(
            nn.Sequential(nn.Conv2d(c, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
            for c in (3, 32, 32, 32)
        )
    ).to(cuda)
    saving = to_inplace(copy.deepcopy(plain))
    x = torch.rand(2, 3, 128, 128, device=cuda)
    found, peaks = [], []
    for network in (plain, saving):
        network(x).square().mean().backward()  # cuDNN takes its workspace
        network.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        network(x).square().mean().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        found.append([p.grad for p in network.parameters()])
    for mine, theirs in zip(*found, strict=True):
        assert (mine - theirs).norm() <= 1e-3 * theirs.norm() + 1e-6
    assert peaks[1] < 0.9 * peaks[0]


def test_folded_teacher_says_the_same(cuda):
    torch.manual_seed(0)
    network = pspnet_resnet18(7).to(cuda).eval()
    images = torch.randn(2, 3, 65, 97, device=cuda)
    with torch.no_grad():
        before = network(images)
        assert fold_norms(network, images) > 15
        torch.testing.assert_close(network(images), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("jitter", [0.0, 0.4])
def test_augmentation_on_the_device(jitter, cuda):
    reader = SceneSet("train", length=6, height=96, width=160)
    settings = {"batch_size": 3, "seed": 3}
    augment = Augment(crop=(64, 80), scale=(0.5, 2.0), color_jitter=jitter)
    host = TrainLoader(reader, transform=augment, **settings)
    device = DeviceLoader(reader, device=cuda, transform=augment, **settings)
    for mine, theirs in zip(islice(device, 4), islice(host, 4), strict=True):
        assert mine.images.device.type == "cuda"
        assert mine.keys == theirs.keys
        assert (mine.targets.cpu().long() == theirs.targets.long()).float().mean() > 0.999
        apart = (mine.images.cpu().int() - theirs.images.int()).abs()
        assert apart.max() <= (3 if jitter else 1)
