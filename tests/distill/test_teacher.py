"""The frozen teacher: what it is, and the forms it may take."""

from functools import partialmethod

import pytest
import torch
from torch import nn

from densekd.build.distiller import build_distiller
from densekd.config.load import make_config
from densekd.distill.teacher import Teacher, joined
from densekd.models import espnet, fcos_timm
from densekd.models.taps import Taps
from densekd.types import DenseOutput, DetectorOutput
from tests.distill.helpers import CLASSES, make_batch, make_distiller, make_task

IMAGES = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def make_network(seed: int = 0) -> Taps:
    torch.manual_seed(seed)
    return Taps(espnet(CLASSES, p=1, q=1), {"b3": "b3"})


def test_it_never_trains():
    teacher = Teacher(make_network()).train()
    assert not any(m.training for m in teacher.modules())
    output = teacher(IMAGES)
    assert not any(p.requires_grad for p in teacher.parameters())
    # Not inference tensors, which no backward can use.
    (output.prediction * torch.ones(1, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_split_batch_is_the_batch(size):
    whole, parts = Teacher(make_network())(IMAGES), Teacher(make_network(), batch_size=size)(IMAGES)
    torch.testing.assert_close(parts.prediction, whole.prediction, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts.features, whole.features, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="batch_size is 0"):
        Teacher(make_network(), batch_size=0)


def test_a_detector_sees_a_split_batch():
    torch.manual_seed(0)
    network = fcos_timm(
        3, backbone="mobilenetv3_small_050", pyramid_channels=64, extra_levels=0, head_convs=1
    )
    taps = Taps(network, {"levels": "fpn:*"})
    images = torch.rand(3, 3, 64, 96)
    whole, parts = Teacher(taps)(images), Teacher(taps, batch_size=2)(images)
    for name in ("logits", "boxes", "centerness", "anchors"):
        torch.testing.assert_close(
            getattr(parts.prediction, name), getattr(whole.prediction, name), rtol=1e-4, atol=1e-5
        )
    assert parts.prediction.kind == "fcos"
    torch.testing.assert_close(parts.features, whole.features, rtol=1e-4, atol=1e-5)


def test_joined():
    part = DenseOutput(
        torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 3), {"x": torch.ones(1, 4, 1, 1)}
    )
    assert joined([part]) is part
    both = joined([part, part])
    assert both.aux is not None
    assert len(both.prediction) == len(both.aux) == len(both.features["x"]) == 2
    level = [torch.ones(1, 2, 3, 3)]
    boxes = DetectorOutput(level, level, None, [torch.ones(9, 4)], "retinanet")
    both = joined([DenseOutput(boxes), DenseOutput(boxes)])
    assert both.prediction.centerness is None
    assert both.prediction.anchors[0].shape == (9, 4)
    with pytest.raises(ValueError, match="dict cannot be joined"):
        joined([DenseOutput({"queries": 1}), DenseOutput({"queries": 2})])


@pytest.mark.parametrize("wanted", [True, False, None])
def test_its_own_memory_format(wanted):
    seen = []
    network = make_network()
    network.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    teacher = Teacher(network, channels_last=wanted)
    for images in (IMAGES, IMAGES.contiguous(memory_format=torch.channels_last)):
        teacher(images)
        told = images is not IMAGES if wanted is None else wanted
        assert seen[-1].is_contiguous(memory_format=torch.channels_last) == told


def test_precision():
    assert Teacher(make_network(), dtype=torch.bfloat16)(IMAGES).prediction.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Teacher(make_network())(IMAGES).prediction.dtype == torch.bfloat16
        assert (
            Teacher(make_network(), dtype=torch.float32)(IMAGES).prediction.dtype == torch.float32
        )


def decoder_runs(distiller) -> list:
    runs = []
    distiller.teacher.network.model.classifier.register_forward_hook(lambda *_: runs.append(1))
    return runs


def test_no_prediction_where_none_is_compared():
    """Only features: the teacher stops behind the last of them, and the losses are the same."""
    pair_wise = make_distiller(holistic=False).terms[1]
    distiller = make_distiller(holistic=False, terms=[pair_wise])
    runs = decoder_runs(distiller)
    batch = make_batch()
    first, _ = distiller.student_phase(batch)
    assert len(runs) == 1  # how often taps fire is learned here
    second, _ = distiller.student_phase(batch)
    assert len(runs) == 1
    torch.testing.assert_close(
        first["distill/pair_wise"], second["distill/pair_wise"], rtol=1e-4, atol=1e-6
    )
    assert distiller.teacher(batch.images).prediction.shape[1] == CLASSES  # who asks for it gets it


@pytest.mark.parametrize("holistic", [True, False])
def test_the_prediction_is_there_where_it_is_compared(holistic):
    terms = make_distiller().terms
    distiller = make_distiller(holistic=holistic, terms=terms[1:] if holistic else terms[:1])
    runs = decoder_runs(distiller)
    for _ in range(2):
        distiller.student_phase(make_batch())
    assert len(runs) == 2


def tree(**teacher) -> dict:
    return {
        "model": {"name": "espnet_c", "options": {"p": 1, "q": 1}},
        "teacher": {
            "name": "pspnet_resnet18",
            "options": {"width": 0.125},
            "allow_untrained": True,
            **teacher,
        },
        "data": {"dataset": "scenes", "crop": [64, 96]},
        "distill": {"pixel_wise": {"weight": 10}, "pair_wise": {"weight": 10}},
        "train": {"channels_last": True},
    }


def build_teacher(**options) -> Teacher:
    torch.manual_seed(0)
    config = make_config(tree(**options), "test")
    distiller, _ = build_distiller(config, make_task(), distil=True, device=torch.device("cpu"))
    assert distiller.teacher is not None
    return distiller.teacher


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_settings_reach_it():
    plain = build_teacher(fold_norms=False, channels_last=False)
    folded = build_teacher(batch_size=2, precision="bf16")
    assert norms(folded) == 1 < norms(plain)  # the auxiliary head, which never runs
    assert (plain.channels_last, folded.channels_last) == (False, True)
    assert (plain.batch_size, folded.batch_size) == (None, 2)
    assert folded.dtype == torch.bfloat16
    folded.dtype = None
    mine, theirs = folded(IMAGES), plain(IMAGES)
    torch.testing.assert_close(mine.prediction, theirs.prediction, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(mine.features, theirs.features, rtol=1e-3, atol=1e-3)


def test_compiled(monkeypatch):
    """Traced whole, taps and all; the backend that makes code of it takes minutes and is not ours."""
    monkeypatch.setattr(Taps, "compile", partialmethod(nn.Module.compile, backend="eager"))
    plain, compiled = build_teacher(), build_teacher(compile=True)
    assert compiled.network._compiled_call_impl is not None
    for _ in range(2):
        mine, theirs = compiled(IMAGES), plain(IMAGES)
        torch.testing.assert_close(mine.prediction, theirs.prediction, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(mine.features, theirs.features, rtol=1e-3, atol=1e-3)
    assert compiled(IMAGES, prediction=False).prediction is None
