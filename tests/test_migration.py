"""docs/migration.md: every setting is taken, and the factors between the losses are those of the golden file."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from densekd.build.resolve import accepts, call, resolve
from densekd.build.task import check_task
from densekd.config.load import find_config, make_config
from densekd.config.names import DATASETS, LOSSES
from densekd.config.tree import apply_overrides, parse_yaml
from densekd.losses import attention_transfer, channel_wise, pair_wise, pixel_wise, scale_between

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
GOLDEN = ROOT / "tests" / "golden"
SETTING = re.compile(r"`([a-z_]+(?:\.[a-z_]+)+): (.+?)`")
# What the authors' utils/train_options.py and the two CIRKD scripts take.
AUTHORS = """
data_set classes_num T_ckpt_path S_resume S_ckpt_path D_resume D_ckpt_path batch-size start_epoch epoch_nums
parallel data-dir data-list ignore-label input-size is-training momentum num-steps power random-mirror random-scale
snapshot-dir weight-decay gpu recurrence last-step is-student-load-imgnet student-pretrain-model-imgnet pi pa ho
adv-loss-type imsize-for-adv adv-conv-dim lambda-gp lambda-d lambda-pi lambda-pa pool-scale preprocess-GAN-mode lr-g
lr-d best-mean-IU resume-from
"""
CIRKD = """
kd-temperature lambda-kd lambda-adv lambda-d lambda-skd lambda-cwd-fea lambda-cwd-logit lambda-ifv
lambda-fitnet lambda-at lambda-psd lambda-csd pixel-memory-size region-memory-size region-contrast-size
pixel-contrast-size contrast-temperature lambda-minibatch-pixel lambda-memory-pixel lambda-memory-region crop-size
max-iterations
"""


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.+)$", PAGE, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(section: str) -> list[tuple[str, str]]:
    """(what they have, the cell with ours) of a section's table, a cell without its escapes."""
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [(row[0].strip("| "), row[1]) for row in cells[2:]]


TABLES = {name: rows(text) for name, text in sections().items() if "| here |" in text}
SETTINGS = [
    (name.split(" (")[0], key, value)
    for name, table in TABLES.items()
    for _, here in table
    for key, value in SETTING.findall(here)
]


def test_the_page_has_four_tables_and_no_empty_row():
    assert [name.split(" (")[0] for name in TABLES] == [
        "Structured knowledge distillation", "CIRKD", "mmrazor", "torchdistill"]  # fmt: skip
    for table in TABLES.values():
        for there, here in table:
            assert SETTING.search(here) or here == "nothing to set", there
    assert len(SETTINGS) > 80


@pytest.mark.parametrize(
    ("section", "flags"), [("Structured knowledge distillation", AUTHORS), ("CIRKD", CIRKD)]
)
def test_every_flag_has_a_row(section, flags):
    (table,) = [rows for name, rows in TABLES.items() if name.startswith(section)]
    named = set(re.findall(r"--([\w-]+)", " ".join(there for there, _ in table)))
    assert set(flags.split()) <= named


@pytest.mark.parametrize(("section", "key", "value"), SETTINGS)
def test_a_setting_is_taken(section, key, value):
    """As a recipe would: the schema, the task's and the reader's arguments, the loss with its options."""
    path = find_config("cityscapes/pspnet_r18_from_pspnet_r101")
    tree = deepcopy(parse_yaml(path.read_text(encoding="utf-8"), str(path)))
    if key.startswith("distill.") and key.count(".") == 1:
        tree["distill"] = {}
    apply_overrides(tree, {key: yaml.safe_load(value)})
    config = make_config(tree, section)
    check_task(config.task)
    reader = resolve(config.data.dataset, DATASETS, "data.dataset")
    assert all(accepts(reader, option) for option in config.data.train_options)
    table = {name: dotted for name, (dotted, _) in LOSSES.items()}
    for name, term in config.distill.terms.items():
        call(resolve(term.loss or name, table, name), term.options, name)


@pytest.fixture(scope="module")
def golden():
    return {
        **load_file(GOLDEN / "seed_losses.safetensors"),
        **load_file(GOLDEN / "zoo_losses.safetensors"),
    }


def test_the_factors_of_the_table(golden):
    logits = golden["logits_student"], golden["logits_teacher"]
    features = golden["feature_student"], golden["feature_teacher"]
    n, classes, height, width = logits[0].shape
    places = features[0].shape[2] * features[0].shape[3]
    default = pixel_wise(*logits)
    for name, factor in (("cirkd", 1), ("ifvd", 1 / classes), ("mmrazor", height * width)):
        torch.testing.assert_close(
            golden[f"pixel_wise.{name}.T1.loss"], default * factor, rtol=1e-5, atol=0
        )
        assert scale_between("pixel_wise", "paper", name, *logits) == pytest.approx(
            factor, rel=1e-5
        )
    torch.testing.assert_close(
        golden["attention.cirkd.loss"], attention_transfer(*features) / places, rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        golden["channel_wise.cirkd.T4.loss"], channel_wise(*logits), rtol=1e-5, atol=0
    )
    # --lambda-pi: value and gradient; the gradient is N times that of our default.
    student = logits[0].clone().requires_grad_()
    (ours,) = torch.autograd.grad(pixel_wise(student, logits[1]), student)
    torch.testing.assert_close(golden["pixel_wise.grad"], n * ours, rtol=1e-4, atol=1e-9)
    # --lambda-pa is another scale: the authors' number, and how far off ours is.
    authors = pair_wise(*features, convention="authors", granularity=0.5)
    torch.testing.assert_close(golden["pair_wise.scale_0.5.loss"], authors, rtol=1e-4, atol=0)
    assert 1800 < pair_wise(*features) / authors < 2200
    shown = sections()["What is measured"]
    values = ["pixel_wise.loss", "pixel_wise.cirkd.T1.loss", "pixel_wise.ifvd.T1.loss", "pixel_wise.mmrazor.T1.loss",
              "pair_wise.scale_0.5.loss", "pair_wise.cirkd.loss", "attention.cirkd.loss",
              "channel_wise.cirkd.T4.loss"]  # fmt: skip
    named = re.compile(r"\| (pixel|pair|attention|channel)")
    numbers = [float(row.split("|")[2]) for row in shown.splitlines() if named.match(row)]
    assert numbers == pytest.approx([golden[name].item() for name in values], rel=1e-4)


def test_the_discriminators_factor_is_that_of_sgd():
    """A loss times λ under SGD with decay is a learning rate times λ with a decay over λ."""
    weight, scale, lr, decay = torch.tensor([2.0, -3.0]), 0.1, 4e-4, 5e-4
    results = []
    for factor, rate, shrink in ((scale, lr, decay), (1.0, lr * scale, decay / scale)):
        w = weight.clone().requires_grad_()
        optimizer = torch.optim.SGD([w], rate, momentum=0.9, weight_decay=shrink)
        for _ in range(3):
            optimizer.zero_grad()
            (factor * (w**3).sum()).backward()
            optimizer.step()
        results.append(w.detach())
    torch.testing.assert_close(results[0], results[1])
    assert "`distill.holistic.lr: 4.0e-5`" in PAGE
    assert "`distill.holistic.weight_decay: 5.0e-3`" in PAGE
