"""The loops of examples/ run, and those of other libraries give the losses of a plain loop to the last digits."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from densekd import Distiller, Term, losses, models
from densekd.types import Batch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LOOPS = ["loop_accelerate", "loop_fabric", "loop_lightning", "loop_hf_trainer", "smp_from_smp", "cnn_from_vit",
         "other_classes", "unlabelled_stream", "two_teachers"]  # fmt: skip


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


@pytest.fixture
def plain(load):
    """(the student's weights, the losses) of a loop without any library."""
    torch.manual_seed(0)
    loader, task = load("small_scenes").small_loader()
    k = len(task.classes)
    terms = [
        Term("pixel_wise", losses.PixelWise(), weight=10),
        Term("pair_wise", losses.PairWise(), weight=10, student="b3", teacher="b3"),
    ]
    student = models.espnet_c(k, p=1, q=1)
    distiller = Distiller(student, task, teacher=models.espnet(k, p=1, q=1), terms=terms)
    optimizer = torch.optim.Adam(distiller.student.parameters(), lr=2e-3)
    distiller.student.train()
    history = []
    for images, labels in loader:
        named, _ = distiller.student_phase(Batch.of(images, labels))
        optimizer.zero_grad()
        sum(named.values()).backward()
        optimizer.step()
        history.append({name: value.item() for name, value in named.items()})
    return student.state_dict(), history


def same(result, plain):
    student, history = result
    state, expected = plain
    assert [list(row) for row in history] == [list(row) for row in expected]
    for row, other in zip(history, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-6)
    torch.testing.assert_close(student.state_dict(), state)


def test_every_loop_is_short_and_shown():
    page = (EXAMPLES.parent / "docs" / "loops.md").read_text(encoding="utf-8")
    for name in LOOPS:
        assert f"<!-- file: examples/{name}.py -->" in page
        assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 70


def test_accelerate(load, plain, monkeypatch):
    pytest.importorskip("accelerate")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    same(load("loop_accelerate").main(), plain)


def test_fabric(load, plain):
    pytest.importorskip("lightning")
    same(load("loop_fabric").main(accelerator="cpu"), plain)


def test_lightning(load, plain, tmp_path):
    pytest.importorskip("lightning")
    options = {"accelerator": "cpu", "enable_checkpointing": False, "enable_progress_bar": False,
               "default_root_dir": tmp_path, "enable_model_summary": False}  # fmt: skip
    same(load("loop_lightning").main(**options), plain)


def test_hf_trainer_with_a_segformer(load, tmp_path):
    transformers = pytest.importorskip("transformers")
    trainer = load("loop_hf_trainer").main(str(tmp_path), steps=2)
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(logged) == 2
    # What was saved is the library's own, and holds what was trained.
    again = transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path)
    torch.testing.assert_close(again.state_dict(), trainer.model.state_dict())
    # The loss by hand: the student's own, the pixel-wise term, and the pair-wise one.
    inputs = trainer.data_collator(list(trainer.train_dataset)[:4])
    model = trainer.model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(model, inputs)
        teacher = trainer.teacher(inputs["pixel_values"])
        spec = load("loop_hf_trainer").SPEC
        output = model(pixel_values=spec.normalize(inputs["pixel_values"]), labels=inputs["labels"],
                       output_hidden_states=True)  # fmt: skip
        logits = torch.nn.functional.interpolate(
            teacher.prediction, output.logits.shape[-2:], mode="bilinear", align_corners=True
        )
        kl = torch.nn.functional.kl_div(
            output.logits.log_softmax(1), logits.log_softmax(1), log_target=True, reduction="none"
        )
        pixel = kl.sum(1).mean()
    assert loss > output.loss + 10 * pixel  # and the pair-wise term
    assert loss - output.loss - 10 * pixel < 10 * 4  # cosines differ by 2 at most


def test_smp_from_smp(load, tmp_path):
    smp = pytest.importorskip("segmentation_models_pytorch")
    student = load("smp_from_smp").main(str(tmp_path), steps=2, quiet=True)
    bare = smp.Unet("tu-test_resnet", encoder_weights=None, classes=9)
    bare.load_state_dict(student.model.state_dict(), strict=True)
    images = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        normal = student.input_spec.normalize(images)
        torch.testing.assert_close(bare.eval()(normal), student(images).prediction)


@pytest.mark.parametrize("name", ["cnn_from_vit", "other_classes", "two_teachers"])
def test_terms_are_finite_and_reach_the_student(load, name):
    history = load(name).main()
    assert len(history) == 2
    for row in history:
        assert {"task/ce", "distill/pixel_wise", "distill/pair_wise"} <= set(row)
        assert all(0 < value < 1e4 for value in row.values()), row
    assert history[0] != history[1]


def test_unlabelled_images_train_the_terms_alone(load):
    history, labelled = load("unlabelled_stream").main(steps=2)
    assert labelled.tolist() == [True, True, False, False]
    assert all(row["distill/pixel_wise"] > 0 for row in history)
