"""Where the teacher's maps come from: several teachers, named or averaged, and sources of one's own."""

import copy

import pytest
import torch

from densekd.distill import Adversary, Discriminator, Distiller, Term
from densekd.distill.maps import TeacherMaps
from densekd.distill.source import mean_of
from densekd.losses import PairWise, PixelWise
from densekd.models.espnet import espnet, espnet_c
from tests.distill.helpers import CLASSES, make_batch, make_task


def network(seed):
    torch.manual_seed(seed)
    return espnet(CLASSES, p=1, q=1).eval()


def student():
    torch.manual_seed(9)
    return espnet_c(CLASSES, p=1, q=1)


def pixel(**options):
    return Term("pixel_wise", PixelWise(temperature=2.0), 1.0, **options)


def value_of(teacher, term, **options):
    distiller = Distiller(student(), make_task(), teacher=teacher, terms=[term], **options)
    return distiller.student_phase(make_batch(2))[0][f"distill/{term.name}"]


def test_mean_of_softmax_is_the_mean_of_probabilities():
    a, b = torch.randn(2, 5, 4, 6), 3 * torch.randn(2, 5, 4, 6)
    mean = mean_of([a, b], "softmax")
    torch.testing.assert_close(mean.softmax(1), (a.softmax(1) + b.softmax(1)) / 2)
    torch.testing.assert_close(mean.exp().sum(1), torch.ones(2, 4, 6))


def test_mean_of_sigmoids_stays_finite():
    a, b = torch.randn(2, 5, 4, 6), 3 * torch.randn(2, 5, 4, 6)
    torch.testing.assert_close(
        mean_of([a, b], "sigmoid").sigmoid(), (a.sigmoid() + b.sigmoid()) / 2
    )
    far = mean_of([torch.full((1, 1, 1, 1), -200.0), torch.full((1, 1, 1, 1), -200.0)], "sigmoid")
    assert far.item() == pytest.approx(-200)
    torch.testing.assert_close(mean_of([a, b], "none"), (a + b) / 2)


def test_maps_of_several_sizes_meet_at_the_smallest():
    assert mean_of([torch.rand(1, 2, 8, 8), torch.rand(1, 2, 4, 6)], "none").shape[-2:] == (4, 6)
    with pytest.raises(ValueError, match="2 and 3 channels"):
        mean_of([torch.rand(1, 2, 4, 4), torch.rand(1, 3, 4, 4)], "none")


def test_two_teachers_are_averaged():
    one, two = network(0), network(1)
    both = value_of([one, two], pixel())
    # A teacher twice is itself; two teachers are neither of them.
    alone = value_of(one, pixel())
    torch.testing.assert_close(value_of([one, copy.deepcopy(one)], pixel()), alone)
    assert not torch.isclose(both, alone)
    torch.testing.assert_close(both, value_of({"x": two, "y": one}, pixel()))


def test_a_term_names_its_teacher():
    teachers = {"large": network(0), "other": network(1)}
    for name, teacher in teachers.items():
        named = value_of(dict(teachers), pixel(teacher_name=name))
        torch.testing.assert_close(named, value_of(teacher, pixel()))
    pair = Term("pair", PairWise(), 1.0, student="b3", teacher="b3", teacher_name="other")
    distiller = Distiller(
        student(),
        make_task(),
        teacher=teachers,
        terms=[pixel(), pair],
        adversary=Adversary(Discriminator(CLASSES, channels=8)),
    )
    losses, maps = distiller.student_phase(make_batch(2))
    assert list(losses) == ["task/ce", "distill/pixel_wise", "distill/pair", "distill/holistic"]
    assert maps is not None
    assert distiller.teacher is None
    assert not any(p.requires_grad for t in distiller.teachers.values() for p in t.parameters())


@pytest.mark.parametrize(
    ("teacher", "term", "words"),
    [
        ([0, 1], {"student": "b3", "teacher": "b3"}, r"feature b3.* have no mean"),
        ({"a": 0, "b": 1}, {"teacher_name": "c"}, r"'c'; the teachers are a, b"),
        (0, {"teacher_name": "a"}, "there is one"),
    ],
)
def test_what_has_no_teacher_is_said(teacher, term, words):
    if isinstance(teacher, list):
        teacher = [network(i) for i in teacher]
    elif isinstance(teacher, dict):
        teacher = {name: network(i) for name, i in teacher.items()}
    else:
        teacher = network(teacher)
    with pytest.raises(ValueError, match=words):
        Distiller(student(), make_task(), teacher=teacher, terms=[Term("t", PixelWise(), **term)])


def test_a_source_of_ones_own():
    class Uniform:
        def maps(self, batch, mask):
            return TeacherMaps({"pixel_wise": [torch.zeros(len(batch), CLASSES, 8, 12)]})

    assert value_of(Uniform(), pixel()) > 0


def test_a_weight_follows_its_schedule():
    term = Term("pixel_wise", PixelWise(), lambda step: 0.5 * step)
    distiller = Distiller(student(), make_task(), teacher=network(0), terms=[term])
    values = [distiller.student_phase(make_batch(2), step)[0] for step in (0, 2, 4)]
    first, second, third = (v["distill/pixel_wise"].item() for v in values)
    assert first == 0
    assert second > 0
    assert third == pytest.approx(2 * second, rel=1e-2)


def test_two_terms_share_one_loss():
    loss = PixelWise()
    terms = [Term("near", loss, 1.0), Term("far", loss, 3.0)]
    distiller = Distiller(student(), make_task(), teacher=network(0), terms=terms)
    losses, _ = distiller.student_phase(make_batch(2))
    assert losses["distill/far"].item() == pytest.approx(3 * losses["distill/near"].item())
    with pytest.raises(ValueError, match="called near"):
        Distiller(student(), make_task(), teacher=network(0), terms=[terms[0], Term("near", loss)])


def test_a_function_is_a_loss():
    def apart(student, teacher, mask=None):
        return (student - teacher).abs().mean()

    assert value_of(network(0), Term("apart", apart)) > 0
