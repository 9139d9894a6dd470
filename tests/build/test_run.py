"""The one sequence: what it builds, that it draws nothing before the networks, and runs without data."""

import pytest
import torch

from densekd.build.run import Sets, assemble
from densekd.config.load import make_config
from densekd.engine.folder import RunFolder
from densekd.engine.launch import Process
from densekd.errors import UserError
from densekd.workflows.validate import stand_in_reader

CPU = Process(rank=0, world_size=1, device=torch.device("cpu"))


def test_all_parts_are_there_and_nothing_is_written(tiny_tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = assemble(make_config(tiny_tree, "test"), CPU, distil=True)
    assert [term.name for term in run.distiller.terms] == ["pixel_wise", "pair_wise"]
    assert (len(run.train_set), len(run.val_set)) == (6, 3)
    assert run.size == (64, 128)
    assert run.step.distiller is run.distiller
    skipped: dict[str, str] = {}
    assert len(next(iter(run.train_loader(0, skipped)))) == len(run.first_batch()) == 2
    assert run.score(run.network, skipped, limit=1)["pixels"] > 0
    assert run.training(RunFolder(tmp_path / "r")).student is run.network
    assert list(tmp_path.iterdir()) == []


def test_equal_settings_give_equal_first_weights(tiny_tree):
    config = make_config(tiny_tree, "test")
    torch.manual_seed(1)
    first = assemble(config, CPU, distil=True)
    torch.rand(3)
    second = assemble(config, CPU, distil=True)
    for one, other in (
        (first.network, second.network),
        (first.distiller.teacher, second.distiller.teacher),
    ):
        state = other.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())


def test_other_sets_make_another_run(tiny_tree):
    run = assemble(make_config(tiny_tree, "test"), CPU, distil=False)
    other = run.with_sets(run.val_set, run.train_set)
    assert (len(other.train_set), len(run.train_set)) == (3, 6)
    assert other.step is run.step


def test_remarks_say_what_is_odd(tiny_tree):
    tiny_tree["optim"]["warmup_steps"] = 4
    run = assemble(make_config(tiny_tree, "test"), CPU, distil=False)
    assert any("the learning rate never reaches optim.lr" in remark for remark in run.remarks)


def test_without_data_batches_are_made_up_and_nothing_is_scored(tiny_tree):
    tiny_tree["data"].update(dataset="camvid", options={}, train_options={}, val_options={})
    tiny_tree["train"]["best"] = "no metric"  # of no matter where nothing is scored
    config = make_config(tiny_tree, "test")
    run = assemble(config, CPU, distil=True, sets=Sets(stand_in_reader(config), made_up=True))
    assert run.first_batch().images.shape == (2, 3, 64, 128)
    assert len(run.task.classes) == 11
    with pytest.raises(UserError, match=r"data\.root"):
        assemble(config, CPU, distil=True)
