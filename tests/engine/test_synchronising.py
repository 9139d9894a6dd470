"""What would make a GPU wait within a step: values that the host asks for, and copies from the host."""

import dataclasses
from collections import Counter

import pytest
import torch

from benchmarks.cases import CASES, make_case, make_step
from benchmarks.operators import Asked, as_on_a_gpu
from tests.distill.helpers import make_batch, make_distiller

CPU = torch.device("cpu")
IMAGES = 2  # of a dry case's batch
# torchvision's matching of FCOS writes three numbers into parts of its tensors for each image. On a GPU they are filled
# in there; on the CPU each is a tensor first.
FCOS_NUMBERS = {"aten::lift_fresh": 3 * IMAGES}
# RetinaNet's assignment and losses are torchvision's own: it takes the matched anchors out, image by image, and the
# labels that count are taken out for it. A bound, so that it does not grow.
RETINANET = dataclasses.replace(
    CASES["fcos_mv2_from_r50"],
    dry=(("retinanet_timm", {**CASES["fcos_mv2_from_r50"].dry[0][1]}),) * 2,
)
RETINANET_ASKS = 13 * IMAGES
HOST = ("tolist", "cpu", "numpy", "item")  # methods that the dispatcher does not see on the CPU


def asked_in_a_step(case, monkeypatch, *, holistic):
    """What the second step of a dry case asks for, and which of `HOST` it calls."""
    config, distiller, batch = make_case(case, CPU, dry=True)
    if not holistic:
        distiller.adversary = None
    step = make_step(config, distiller, CPU)
    calls: Counter[str] = Counter()

    def counting(name):
        original = getattr(torch.Tensor, name)

        def call(self, *args, **kwargs):
            calls[name] += 1
            return original(self, *args, **kwargs)

        return call

    with as_on_a_gpu(), monkeypatch.context() as patched:
        step([batch], 0)
        for name in HOST:
            patched.setattr(torch.Tensor, name, counting(name))
        with Asked() as asked:
            step([batch], 1)
    return dict(asked.found), dict(calls)


@pytest.mark.parametrize("phase", ["student", "discriminator"])
def test_a_step_of_segmentation_asks_for_nothing(phase):
    distiller, batch = make_distiller(), make_batch(2)
    losses, maps = distiller.student_phase(batch)
    with Asked() as asked:
        if phase == "student":
            losses, _ = distiller.student_phase(batch)
        else:
            losses = distiller.discriminator_phase(maps)
        torch.stack([value.float() for value in losses.values()]).sum().backward()
    assert not asked.found


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("espnet_c_from_espnet", {}),
        ("depth_lite0_from_r18", {}),  # metres: silog, berhu
        ("bins_lite0_from_r18", {}),  # cross_entropy, virtual_normal
        ("fcos_mv2_from_r50", FCOS_NUMBERS),
    ],
)
def test_a_whole_step_reads_its_losses_once_and_asks_for_nothing_else(name, allowed, monkeypatch):
    found, calls = asked_in_a_step(CASES[name], monkeypatch, holistic=False)
    assert found == allowed
    assert calls == {"tolist": 1}


def test_with_the_holistic_term_it_reads_twice(monkeypatch):
    found, calls = asked_in_a_step(CASES["depth_lite0_from_r18"], monkeypatch, holistic=True)
    assert not found
    assert calls == {"tolist": 2}


def test_retinanets_own_rules_ask_no_more_than_they_did(monkeypatch):
    found, _ = asked_in_a_step(RETINANET, monkeypatch, holistic=False)
    assert 0 < sum(found.values()) <= RETINANET_ASKS


def test_what_is_counted():
    x = torch.arange(4.0)
    with Asked() as asked:
        bool((x > 1).any())
        x[x > 1]
        torch.tensor([1.0])
        x[x > 1] = x[x > 1] * 2
        x[x > 1] = 0.0  # one number: a masked fill
        x.repeat_interleave(torch.ones(4, dtype=torch.long))
        x.repeat_interleave(torch.ones(4, dtype=torch.long), output_size=4)
    assert set(asked.found) == {
        "aten::_local_scalar_dense", "aten::index", "aten::lift_fresh", "aten::index_put_",
        "aten::repeat_interleave",
    }  # fmt: skip
    assert asked.found["aten::repeat_interleave"] == 1
    assert asked.found["aten::index_put_"] == 1
