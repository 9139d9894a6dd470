"""A term with parameters and a memory of its own: trained, saved, resumed to the bit, in step over ranks."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from my_memory import Remembering
from torch import nn

from densekd.build.dry_run import dry_run
from densekd.config.load import make_config
from densekd.distill import Distiller, Term
from densekd.engine.checkpoint import load_checkpoint, save_atomic
from densekd.engine.folder import RunFolder
from densekd.engine.trainer import Training
from densekd.errors import UserError
from densekd.models.weights import read_weights
from densekd.workflows.run import run
from tests.distill.helpers import make_batch, make_distiller

ROOT = Path(__file__).resolve().parents[2]
PATHS = [str(ROOT / folder) for folder in ("", "src", "examples")]


LOSS = "my_memory.Remembering"  # examples/ is on the path of the tests


@pytest.fixture
def tree(tiny_tree):
    tiny_tree["distill"] = {
        "memory": {"loss": LOSS, "weight": 0.1, "channels": 256, "student": "b3", "teacher": "b3"},
        "pixel_wise": {"weight": 1},
    }
    tiny_tree["train"]["ema"] = 0.9
    return tiny_tree


def go(tree, folder, *, resume=False):
    config = make_config(tree, "test")
    return run(config, distil=True, folder=folder, command="test", resume=resume, device="cpu")


def test_a_run_trains_saves_and_resumes_it_bit_for_bit(tree, tmp_path, monkeypatch):
    assert go(tree, tmp_path / "whole") == 0
    original = Training.save

    def die(self):
        original(self)
        if self.done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Training, "save", die)
        with pytest.raises(KeyboardInterrupt):
            go(tree, tmp_path / "parts")
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    early = load_checkpoint(parts.last)["terms"]["memory"]
    assert early["loss.seen"] == 4  # two steps of two images: the dry run left no trace
    assert go(tree, tmp_path / "parts", resume=True) == 0
    assert whole.student.read_bytes() == parts.student.read_bytes()
    a, b = (load_checkpoint(folder.last)["terms"]["memory"] for folder in (whole, parts))
    assert set(a) == {"loss.generator.weight", "loss.generator.bias", "loss.queue", "loss.seen"}
    assert all(torch.equal(value, b[name]) for name, value in a.items())
    assert not torch.equal(a["loss.generator.weight"], early["loss.generator.weight"])
    assert a["loss.queue"].abs().sum(1).min() > 0  # full
    assert not any("generator" in key or "queue" in key for key in read_weights(whole.student))


def test_its_rate_can_be_set(tree, tmp_path):
    tree["optim"]["groups"] = [{"prefix": "terms.memory", "lr_scale": 0.0}]
    tree["optim"]["weight_decay"] = 0.0
    tree["train"].update(steps=2, save_every=1)
    assert go(tree, tmp_path / "run") == 0
    torch.manual_seed(0)
    state = load_checkpoint(RunFolder(tmp_path / "run").last)
    assert [group["base_lr"] for group in state["optimizer"]["param_groups"]] == [0.01, 0.0]


def test_a_checkpoint_without_terms_is_refused_in_words(tree, tmp_path):
    tree["train"]["steps"] = 2
    assert go(tree, tmp_path / "run") == 0
    folder = RunFolder(tmp_path / "run")
    folder.result.unlink()
    state = load_checkpoint(folder.last)
    terms = state.pop("terms")
    save_atomic({**state, "adapters": {}}, folder.last)
    with pytest.raises(UserError, match=r"older version.* another --name"):
        go(tree, tmp_path / "run", resume=True)
    terms["memory"].pop("loss.queue")
    save_atomic({**state, "terms": terms}, folder.last)
    with pytest.raises(UserError, match=r"does not fit the term memory"):
        go(tree, tmp_path / "run", resume=True)


def memory_distiller() -> Distiller:
    torch.manual_seed(0)
    terms = [Term("memory", Remembering(channels=256), 0.1, "b3", "b3")]
    return make_distiller(holistic=False, terms=terms)


def test_a_dry_run_leaves_no_trace():
    distiller = memory_distiller()
    assert dry_run(distiller, make_batch(2)) == []
    assert distiller.terms[0].loss.seen == 0
    distiller.student_phase(make_batch(2))
    assert distiller.terms[0].loss.seen == 2


def test_ddp_that_knows_nothing_of_a_terms_state_is_refused(monkeypatch):
    class Stand(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", Stand)
    distiller = memory_distiller()
    with pytest.raises(ValueError, match=r"memory .* distiller.student = DDP"):
        Distiller(
            Stand(distiller.student.taps),
            distiller.task,
            teacher=distiller.teacher,
            terms=distiller.terms,
        )
    kept = Stand(distiller.student)
    again = Distiller(kept, distiller.task, teacher=distiller.teacher, terms=distiller.terms)
    assert again.student is kept


RANK = """
    import sys, torch
    from densekd.build.step import build_optimizer, wrap_ddp
    from densekd.config.schema import Optim
    from densekd.engine.launch import started
    from densekd.engine.step import Step, bare
    from densekd.types import Batch
    from tests.distill.helpers import make_batch
    from tests.distill.test_term_state import memory_distiller

    torch.set_num_threads(1)
    with started("cpu") as process:
        distiller = memory_distiller()
        # Ranks begin differently: rank 0 decides.
        with torch.no_grad():
            for parameter in distiller.terms[0].parameters():
                parameter.add_(process.rank)
        network = distiller.student.model
        optimizer = build_optimizer(Optim(name="sgd", lr=0.01), network, distiller.terms)
        wrap_ddp(distiller, process)
        step = Step(distiller, optimizer)
        part = slice(process.rank * 2, process.rank * 2 + 2)
        for i in range(4):
            group = []
            for j in range(2):  # accumulated
                whole = make_batch(4, seed=2 * i + j)
                group.append(Batch(whole.images[part], whole.targets[part], whole.labelled[part],
                                   whole.inside[part], whole.names[part]))
            step(group, i)
        state = bare(distiller.student).terms_state()["memory"]
        torch.save(state, f"{sys.argv[1]}/rank{process.rank}.pt")
"""


@pytest.mark.dist
def test_two_ranks_hold_equal_parameters_and_queues(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(textwrap.dedent(RANK))
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0",
         "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(script), str(tmp_path)],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(PATHS), "OMP_NUM_THREADS": "1"},
        timeout=240,
        capture_output=True,
    )  # fmt: skip
    one, two = (torch.load(tmp_path / f"rank{i}.pt", weights_only=True) for i in (0, 1))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    fresh = memory_distiller().terms[0].state_dict()
    for name in ("loss.generator.weight", "loss.generator.bias", "loss.queue"):
        assert not torch.equal(one[name], fresh[name]), f"{name} has not moved"
    assert one["loss.seen"] == 4 * 2 * 4  # steps, batches and images: those of both ranks
    # The newest rows are the last batch's, rank 0's images before rank 1's.
    distiller = memory_distiller()
    batch = make_batch(4, seed=7)
    distiller.student_phase(batch)
    torch.testing.assert_close(
        one["loss.queue"][:4], distiller.terms[0].loss.queue[:4], rtol=1e-4, atol=1e-5
    )
