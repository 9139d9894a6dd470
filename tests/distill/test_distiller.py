"""The two phases: what they name, what they leave alone, and what masks do."""

import copy

import pytest
import torch

from densekd.distill.distiller import Distiller
from densekd.distill.maps import match_sizes
from densekd.distill.source import maps_of
from densekd.distill.teacher import Teacher
from densekd.distill.term import Term
from densekd.losses import PixelWise
from densekd.models.espnet import espnet_c
from densekd.models.taps import Taps
from densekd.types import DenseOutput
from tests.distill.helpers import CLASSES, make_batch, make_distiller, make_task


def test_a_step_names_every_term():
    losses, maps = make_distiller().student_phase(make_batch(2))
    assert list(losses) == [
        "task/ce",
        "distill/pixel_wise",
        "distill/pair_wise",
        "distill/holistic",
    ]
    assert all(v.ndim == 0 and torch.isfinite(v) for v in losses.values())
    named = make_distiller().discriminator_phase(maps)
    assert list(named) == ["discriminator/adversarial", "discriminator/penalty"]


def test_a_student_equal_to_its_teacher_has_zero_terms():
    network = espnet_c(CLASSES, p=1, q=1).eval()
    distiller = Distiller(
        network,
        make_task(),
        teacher=Teacher(Taps(copy.deepcopy(network), {"b3": "b3"}, None)),
        terms=make_distiller(holistic=False).terms,
    )
    distiller.student.eval()
    losses, _ = distiller.student_phase(make_batch(2))
    assert losses["distill/pixel_wise"].item() == pytest.approx(0, abs=1e-5)
    assert losses["distill/pair_wise"].item() == pytest.approx(0, abs=1e-9)
    assert losses["task/ce"] > 0.1


def test_the_teacher_stays_in_eval_mode_and_gets_no_gradient():
    distiller = make_distiller()
    distiller.teacher.train()
    before = copy.deepcopy(distiller.teacher.state_dict())
    losses, _ = distiller.student_phase(make_batch(2))
    sum(losses.values()).backward()
    assert not any(m.training for m in distiller.teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in distiller.teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in distiller.teacher.state_dict().items())


def test_the_students_phase_leaves_the_discriminator_alone():
    distiller = make_distiller()
    losses, _ = distiller.student_phase(make_batch(2))
    sum(losses.values()).backward()
    assert all(p.grad is None and p.requires_grad for p in distiller.adversary.network.parameters())
    assert all(p.grad is not None for p in distiller.student.parameters())


def test_the_discriminators_phase_leaves_the_student_alone():
    distiller = make_distiller()
    _, maps = distiller.student_phase(make_batch(2))
    sum(distiller.discriminator_phase(maps).values()).backward()
    assert all(p.grad is None for p in distiller.student.parameters())
    assert any(p.grad is not None for p in distiller.adversary.network.parameters())


def test_the_student_hears_the_discriminator_from_start_step_on():
    distiller = make_distiller()
    distiller.adversary.start_step = 5
    assert "distill/holistic" not in distiller.student_phase(make_batch(2), step=4)[0]
    losses, maps = distiller.student_phase(make_batch(2), step=5)
    assert "distill/holistic" in losses
    assert maps is not None


def test_unlabelled_images_train_the_distillation_terms_only():
    distiller = make_distiller(holistic=False)
    batch = make_batch(2)
    batch.targets.fill_(255)
    batch.labelled.fill_(False)
    losses, _ = distiller.student_phase(batch)
    assert losses["task/ce"].item() == 0
    assert losses["distill/pixel_wise"] > 0


@pytest.mark.parametrize("kind", ["label", "padding", "none"])
def test_a_batch_of_nothing_but_padding_is_finite(kind):
    distiller = make_distiller(mask=kind)
    batch = make_batch(2)
    batch.targets.fill_(255)
    batch.inside.fill_(False)
    losses, maps = distiller.student_phase(batch)
    total = sum(losses.values()) + sum(distiller.discriminator_phase(maps).values())
    assert torch.isfinite(total)
    total.backward()
    for parameter in distiller.student.parameters():
        assert torch.isfinite(parameter.grad).all()


def test_masks():
    task, batch = make_task(), make_batch(2, (8, 8))
    batch.targets[0, 0, 0] = 255
    batch.targets[1] = 255
    batch.labelled[1] = False
    batch.inside[:, -1] = False
    assert task.mask(batch, "none") is None
    assert torch.equal(task.mask(batch, "padding"), batch.inside)
    mask = task.mask(batch, "label")
    assert not mask[0, 0, 0]  # ignored
    assert mask[0, 1, 1]
    assert mask[1, 0, 0]  # no label at all: the teacher is all there is
    assert not mask[:, -1].any()


def test_the_smaller_map_decides_the_size():
    small, large = torch.rand(1, 2, 5, 6), torch.rand(1, 2, 10, 12)
    assert [tuple(x.shape[-2:]) for x in match_sizes(small, large)] == [(5, 6)] * 2
    assert [tuple(x.shape[-2:]) for x in match_sizes(large, small)] == [(5, 6)] * 2


def test_weights_multiply():
    one = DenseOutput(torch.randn(1, 3, 4, 4))
    two = DenseOutput(torch.randn(1, 3, 4, 4))
    task = make_task()

    def value(weight):
        term = Term("a", PixelWise(), weight)
        return term(one, maps_of(two, [term], task), None, task)

    base, scaled = value(1.0), value(7.0)
    assert scaled.item() == pytest.approx(7 * base.item())


def test_terms_without_a_teacher_are_refused():
    student = Taps(espnet_c(CLASSES, p=1, q=1), {}, None)
    with pytest.raises(ValueError, match="teacher"):
        Distiller(student, make_task(), terms=[Term("a", PixelWise(), 1.0)])


def test_without_a_teacher_only_labels_count():
    student = Taps(espnet_c(CLASSES, p=1, q=1), {}, None)
    losses, maps = Distiller(student, make_task()).student_phase(make_batch(2))
    assert list(losses) == ["task/ce"]
    assert maps is None
