"""Two gloo processes with half a batch each have the gradients of one process with the whole."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from tests.distill.helpers import make_batch, make_distiller

ROOT = Path(__file__).resolve().parents[2]

RANK = """
    import sys, torch
    import torch.distributed as dist
    from densekd.build.step import wrap_ddp
    from densekd.engine.launch import started
    from densekd.types import Batch
    from tests.distill.helpers import make_batch, make_distiller
    from tests.engine.test_ddp import gradients

    def save_gradients(process):  # a function, so that no variable holds the group when it ends
        distiller = make_distiller()
        wrap_ddp(distiller, process)
        whole = make_batch(4)
        part = slice(process.rank * 2, process.rank * 2 + 2)
        batch = Batch(whole.images[part], whole.targets[part], whole.labelled[part],
                      whole.inside[part], whole.names[part])
        alpha = torch.linspace(0.1, 0.9, 4).view(4, 1, 1, 1)[part]
        torch.save(gradients(distiller, batch, alpha), f"{sys.argv[1]}/rank{process.rank}.pt")

    torch.set_num_threads(1)
    with started("cpu") as process:
        save_gradients(process)
"""


def gradients(distiller, batch, alpha):
    """Gradients of both phases; norms in eval mode, so that batch statistics are the same for any split."""
    distiller.student.eval()
    losses, maps = distiller.student_phase(batch)
    sum(losses.values()).backward()
    sum(distiller.discriminator_phase(maps, alpha).values()).backward()
    named = {}
    for part in (distiller.student, distiller.adversary.network):
        bare = getattr(part, "module", part)
        named.update({f"{type(bare).__name__}.{k}": p.grad for k, p in bare.named_parameters()})
    return named


@pytest.mark.dist
def test_two_ranks_have_the_gradients_of_the_whole_batch(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(textwrap.dedent(RANK))
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0",
         "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(script), str(tmp_path)],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "OMP_NUM_THREADS": "1"},
        timeout=240,
        capture_output=True,
    )  # fmt: skip
    expected = gradients(
        make_distiller(), make_batch(4), torch.linspace(0.1, 0.9, 4).view(4, 1, 1, 1)
    )
    ranks = [torch.load(tmp_path / f"rank{i}.pt", weights_only=True) for i in (0, 1)]
    assert list(ranks[0]) == list(expected)
    largest = max(g.norm() for g in expected.values())
    for name, gradient in expected.items():
        assert torch.equal(ranks[0][name], ranks[1][name]), f"{name} differs between ranks"
        # Against the whole network's scale: some gradients are zero by symmetry.
        error = (ranks[0][name] - gradient).norm() / largest
        assert error < 1e-5, f"{name}: {error}"
