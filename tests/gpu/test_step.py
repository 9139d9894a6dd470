"""The optimizer step on CUDA: the CPU's numbers, and every precision and layout learns."""

import copy

import pytest
import torch

from tests.distill.helpers import make_batch, make_distiller
from tests.engine.test_step import make_step, moved, weights

pytestmark = pytest.mark.gpu


def to(distiller, device, *, channels_last=False):
    distiller.student.to(device)
    distiller.teacher.to(device)
    if distiller.adversary is not None:
        distiller.adversary.network.to(device)
    if channels_last:
        distiller.student.to(memory_format=torch.channels_last)
    return distiller


def test_a_step_is_the_cpus(cuda):
    """Terms, gradient norm and updated weights of the student's phase."""
    found = []
    for device in (torch.device("cpu"), cuda):
        step = make_step(to(make_distiller(holistic=False), device), lr=0.01, device=device)
        named = step([make_batch(2).to(device)], 0)
        found.append((named, [p.detach().cpu() for p in step.distiller.student.parameters()]))
    (named, parameters), (got, got_parameters) = found
    assert got == pytest.approx(named, rel=1e-3, abs=1e-5)
    for mine, theirs in zip(parameters, got_parameters, strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-3, atol=1e-4)


def test_the_discriminators_phase_is_the_cpus(cuda):
    found = []
    for device in (torch.device("cpu"), cuda):
        distiller = to(make_distiller(), device)
        _, maps = distiller.student_phase(make_batch(2).to(device))
        alpha = torch.tensor([0.2, 0.7]).view(2, 1, 1, 1).to(device)
        terms = distiller.discriminator_phase(maps, alpha)
        found.append({k: v.item() for k, v in terms.items()})
    assert found[1] == pytest.approx(found[0], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
def test_every_precision_and_layout_learns(amp, channels_last, cuda):
    distiller = make_distiller(holistic=False)
    distiller.terms = []  # an untrained teacher would pull elsewhere
    to(distiller, cuda, channels_last=channels_last)
    step = make_step(distiller, lr=0.05, amp=amp, device=cuda)
    batch = make_batch(2).to(cuda, channels_last)
    losses = [step([batch], i)["task/ce"] for i in range(12)]
    assert losses[-1] < losses[0]
    assert all(p.dtype == torch.float32 for p in distiller.student.parameters())


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_all_terms_in_half_precision(amp, cuda):
    step = make_step(to(make_distiller(), cuda), amp=amp, device=cuda)
    before = weights(step.distiller.student), weights(step.distiller.adversary.network)
    for i in range(4):
        named = step([make_batch(2).to(cuda)], i)
    assert moved(before[0], step.distiller.student)
    assert moved(before[1], step.distiller.adversary.network)
    assert named["discriminator/penalty"] > 0


def test_a_compiled_student_gives_the_same_step(cuda):
    plain = make_step(to(make_distiller(), cuda), device=cuda)([make_batch(2).to(cuda)], 0)
    distiller = to(make_distiller(), cuda)
    keys = list(copy.deepcopy(distiller.student.model).state_dict())
    distiller.student.model.compile()
    step = make_step(distiller, device=cuda)
    torch.manual_seed(0)
    named = step([make_batch(2).to(cuda)], 0)
    terms = ("task/ce", "distill/pixel_wise", "distill/pair_wise", "grad_norm")
    assert {k: named[k] for k in terms} == pytest.approx({k: plain[k] for k in terms}, rel=2e-3)
    assert list(distiller.student.model.state_dict()) == keys
    for i in range(1, 4):
        step([make_batch(2).to(cuda)], i)
