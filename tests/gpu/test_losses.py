"""Losses and the discriminator on CUDA: value and gradient are the CPU's."""

import pytest
import torch

from densekd.distill.discriminator import Discriminator, DiscriminatorLoss
from densekd.losses import PairWise, PixelWise, cross_entropy, ohem_cross_entropy

pytestmark = pytest.mark.gpu

N, K, H, W = 2, 11, 24, 32


def maps(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, K, H, W, generator=generator, dtype=torch.float32)


def mask():
    result = torch.ones(N, H, W, dtype=torch.bool)
    result[0, :5] = False
    return result


def value_and_gradient(loss, device, *others):
    student = maps(0).to(device).requires_grad_()
    value = loss(student, *(o.to(device) for o in others))
    value.backward()
    return value.detach().cpu(), student.grad.cpu()


def check(loss, cuda, *others, rtol=1e-5):
    value, gradient = value_and_gradient(loss, "cpu", *others)
    got, got_gradient = value_and_gradient(loss, cuda, *others)
    torch.testing.assert_close(got, value, rtol=rtol, atol=1e-7)
    assert (got_gradient - gradient).norm() <= 1e-4 * gradient.norm()


@pytest.mark.parametrize(
    "loss",
    [
        PixelWise(),
        PixelWise(convention="authors"),
        PairWise(granularity=2),
        PairWise(granularity=1, pooling="max"),
        PairWise(granularity=2, connection_range=3),
        PairWise(convention="authors", granularity=4, pooling="max"),
    ],
    ids=repr,
)
def test_distillation_terms(loss, cuda):
    check(lambda s, t: loss(s, t), cuda, maps(1))


@pytest.mark.parametrize("loss", [PixelWise(), PairWise(granularity=2)], ids=repr)
def test_masked_terms(loss, cuda):
    check(lambda s, t, m: loss(s, t, mask=m), cuda, maps(1), mask())


@pytest.mark.parametrize("function", [cross_entropy, ohem_cross_entropy])
def test_supervised_terms(function, cuda):
    labels = torch.randint(0, K, (N, H, W), generator=torch.Generator().manual_seed(2))
    labels[~mask()] = 255
    check(lambda s, t: function(s, t, ignore_index=255), cuda, labels)


@pytest.mark.parametrize("convention", ["paper", "authors"])
def test_the_discriminators_terms_and_gradients(convention, cuda):
    torch.manual_seed(0)
    network = DiscriminatorLoss(Discriminator(K, channels=8, convention=convention))
    images = torch.rand(N, 3, H, W, generator=torch.Generator().manual_seed(3))
    alpha = torch.tensor([0.3, 0.8]).view(N, 1, 1, 1)
    state = {k: v.clone() for k, v in network.state_dict().items()}
    found = []
    for device in ("cpu", cuda):
        network.load_state_dict(state)
        network.to(device).zero_grad(set_to_none=True)
        terms = network(
            None if convention == "authors" else images.to(device),
            maps(0).to(device), maps(1).to(device), alpha=alpha.to(device),
        )  # fmt: skip
        sum(terms.values()).backward()
        gradient = torch.cat(
            [p.grad.flatten().cpu() for p in network.parameters() if p.grad is not None]
        )
        found.append(({k: v.item() for k, v in terms.items()}, gradient))
        network.cpu()
    (terms, gradient), (got, got_gradient) = found
    assert got == pytest.approx(terms, rel=1e-4, abs=1e-6)
    assert (got_gradient - gradient).norm() <= 1e-3 * gradient.norm()
