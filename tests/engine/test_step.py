"""The optimizer step: it learns, it stops on NaN before it learns, it averages and clips."""

import copy

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.cases import CASES, make_case
from benchmarks.cases import make_step as build_case_step
from densekd.engine.step import Step
from densekd.errors import NonFiniteError
from tests.distill.helpers import make_batch, make_distiller


def make_step(distiller=None, *, lr=0.01, **options):
    distiller = distiller or make_distiller()
    optimizer = torch.optim.SGD(distiller.student.parameters(), lr=lr)
    discriminator_optimizer = (
        None
        if distiller.adversary is None
        else torch.optim.Adam(distiller.adversary.network.parameters(), lr=1e-3)
    )
    return Step(distiller, optimizer, discriminator_optimizer=discriminator_optimizer, **options)


def weights(module):
    return copy.deepcopy([p.detach() for p in module.parameters()])


def moved(before, module):
    return any(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_a_step_updates_student_and_discriminator_and_nothing_else():
    step = make_step()
    distiller = step.distiller
    parts = [distiller.student, distiller.adversary.network, distiller.teacher]
    before = [weights(p) for p in parts]
    named = step([make_batch(2)], 0)
    assert [moved(b, p) for b, p in zip(before, parts, strict=True)] == [True, True, False]
    terms = [v for k, v in named.items() if k.split("/")[0] in ("task", "distill")]
    assert named["loss"] == pytest.approx(sum(terms), rel=1e-6)
    assert named["grad_norm"] > 0


def test_repeated_steps_on_one_batch_learn_it():
    distiller = make_distiller(holistic=False)
    distiller.terms = []  # an untrained teacher would pull elsewhere
    step = make_step(distiller, lr=0.05)
    losses = [step([make_batch(2)], i)["task/ce"] for i in range(8)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("where", ["student", "teacher"])
def test_a_nan_stops_before_the_weights_change_and_names_the_term(where):
    step = make_step()
    target = step.distiller.student if where == "student" else step.distiller.teacher
    with torch.no_grad():
        next(target.parameters()).fill_(float("nan"))
    before = [p.nan_to_num() for p in weights(step.distiller.student)]
    with pytest.raises(NonFiniteError, match="distill/pixel_wise"):
        step([make_batch(2)], 3)
    after = [p.nan_to_num() for p in step.distiller.student.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("how", ["weight", "gradient"])
def test_a_nan_of_the_discriminator_stops_both(how):
    step = make_step()
    first = next(step.distiller.adversary.network.parameters())
    if how == "weight":
        with torch.no_grad():
            first.fill_(float("nan"))
    else:
        first.register_hook(lambda g: g * float("nan"))
    step.distiller.adversary.start_step = 10
    before = weights(step.distiller.student)
    with pytest.raises(
        NonFiniteError, match="discriminator/" if how == "weight" else "the gradient"
    ):
        step([make_batch(2)], 0)
    assert not moved(before, step.distiller.student)


def test_accumulation_averages_the_batches():
    """Two halves are a whole, up to batch statistics, so the norms are frozen here."""
    whole, halves = make_distiller(holistic=False), make_distiller(holistic=False)
    a, b = make_batch(2, seed=1), make_batch(2, seed=2)
    both = make_batch(4)
    both.images, both.targets = torch.cat([a.images, b.images]), torch.cat([a.targets, b.targets])
    for distiller, batches in ((whole, [both]), (halves, [a, b])):
        distiller.student.eval()
        distiller.student.train = lambda mode=True, s=distiller.student: s
        make_step(distiller, lr=1.0)(batches, 0)
    for x, y in zip(whole.student.parameters(), halves.student.parameters(), strict=True):
        assert torch.allclose(x, y, atol=2e-5)


def test_clipping_bounds_the_update():
    step = make_step(make_distiller(holistic=False), lr=1.0, clip=1e-3)
    before = weights(step.distiller.student)
    step([make_batch(2)], 0)
    change = sum(
        (a - b).square().sum()
        for a, b in zip(before, step.distiller.student.parameters(), strict=True)
    ).sqrt()
    assert change.item() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_learns(amp):
    step = make_step(amp=amp)
    before = weights(step.distiller.student)
    for i in range(3):
        named = step([make_batch(2)], i)
    assert moved(before, step.distiller.student)
    assert all(p.dtype == torch.float32 for p in step.distiller.student.parameters())
    assert named["discriminator/penalty"] > 0


def test_the_average_lags_behind():
    distiller = make_distiller(holistic=False)
    ema = AveragedModel(
        distiller.student.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    step = make_step(distiller, ema=ema)
    for i in range(3):
        step([make_batch(2)], i)
    assert moved(weights(distiller.student.model), ema.module)


def test_channels_last_gives_the_same_loss():
    plain = make_step()([make_batch(2)], 0)
    step = make_step()
    step.distiller.student.to(memory_format=torch.channels_last)
    batch = make_batch(2).to(torch.device("cpu"), channels_last=True)
    named = step([batch], 0)
    assert named["loss"] == pytest.approx(plain["loss"], rel=1e-3)


@pytest.mark.parametrize("broken", [0, 1])
def test_a_broken_condition_of_a_loss_stops_before_the_weights_change(broken):
    """Logarithms of metres below 0 in one of two batches: read with the losses, and said as the loss says it."""
    device = torch.device("cpu")
    config, distiller, batch = make_case(CASES["depth_lite0_from_r18"], device, dry=True)
    distiller.adversary = None
    step = build_case_step(config, distiller, device)
    signs = iter([-1 if i == broken else 1 for i in range(2)])
    phase, decode = distiller.student_phase, distiller.task.decode

    def student_phase(batch, step):
        sign = next(signs)
        distiller.task.decode = lambda prediction: sign * decode(prediction)
        return phase(batch, step)

    distiller.student_phase = student_phase
    before = weights(distiller.student)
    with pytest.raises(ValueError, match=r"the prediction goes down to -\d.*takes logarithms"):
        step([batch, batch], 0)
    assert not moved(before, distiller.student)
