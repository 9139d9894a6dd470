"""Two gloo processes with uneven shares of a batch have the statistics and gradients of one process with all of it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import timm.layers
import torch
import torch.nn.functional as F
from torch import nn

from densekd.layers import ABN, inplace_abn, synchronised_batch_norm
from densekd.ops.collectives import all_reduce_sum, world_size
from densekd.rewrite import synchronise, to_inplace

ROOT = Path(__file__).resolve().parents[2]
SHARES = {"uneven": (3, 1), "even": (2, 2), "one": (4, 0)}

RANK = """
    import sys, torch
    from densekd.engine.launch import started
    from tests.rewrite.test_synchronise import CASES, whole

    torch.set_num_threads(1)
    with started("cpu") as process:
        for name in CASES:
            torch.save(whole(name, process.rank), f"{sys.argv[1]}/{name}{process.rank}.pt")
"""


class Functions(nn.Module):
    """The norm as a function, where a rank has no images at all (a convolution takes none in backward)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.randn(3)) for _ in range(2))
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))

    def forward(self, x):
        norm = synchronised_batch_norm if world_size() > 1 else F.batch_norm
        x = norm(x, self.mean, self.var, self.weight, self.bias, True, 0.3)
        many = world_size() > 1
        scale = self.weight.abs() + 0.1
        return inplace_abn(x, scale, self.bias, slope=0.2, synchronised=many)


def network() -> nn.Module:
    def conv() -> nn.Module:
        return nn.Conv2d(4, 4, 3, padding=1)

    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), ABN(4, momentum=0.3),
        conv(), nn.BatchNorm2d(4), nn.ReLU(),
        conv(), timm.layers.BatchNormAct2d(4, act_layer=nn.SiLU),
        conv(), ABN(4, activation="identity"), nn.ReLU(inplace=True),
        conv(), ABN(4, activation="elu"),
        conv(), nn.BatchNorm2d(4, momentum=None, affine=False),
        conv(), nn.BatchNorm2d(4, track_running_stats=False),
        nn.AdaptiveAvgPool2d(1), conv(), ABN(4),
    )  # fmt: skip
    with torch.no_grad():
        for module in net:
            if getattr(module, "weight", None) is not None and module.weight.ndim == 1:
                module.weight.copy_(torch.randn(4))
    return net


CASES = {
    "plain": ("uneven", network, {}),
    "inplace under ddp": ("even", lambda: to_inplace(network()), {"ddp": True}),
    "compiled": ("even", network, {"compile": "aot_eager"}),
    "empty": ("one", Functions, {}),
}


def whole(case: str, rank: int | None = None):
    """Gradients (summed over ranks) and buffers after two passes of a rank's share, or of everything in one process."""
    share, build, options = CASES[case]
    torch.manual_seed(0)
    net = build().double()
    x = torch.randn(2, 4, 3, 6, 5).double() + 3
    if rank is not None:
        synchronise(net)
        first = SHARES[share][0]
        part = slice(0, first) if rank == 0 else slice(first, 4)
        x = x[:, part]
    if rank is not None and "compile" in options:
        net.compile(backend=options["compile"])
    ddp = rank is not None and "ddp" in options
    called = nn.parallel.DistributedDataParallel(net) if ddp else net
    x.requires_grad_()
    for images in x:
        called(images).flatten(1).sin().sum(1).square().sum().backward()
    return {
        "input": x.grad,
        **{k: 2 * p.grad if ddp else all_reduce_sum(p.grad) for k, p in net.named_parameters()},
        **dict(net.named_buffers()),
    }


@pytest.mark.slow  # two processes with torch in each
@pytest.mark.dist
def test_ranks_have_the_gradients_of_the_whole_batch(tmp_path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(textwrap.dedent(RANK))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0",
         "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(script), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "OMP_NUM_THREADS": "1"},
        timeout=240,
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for case in CASES:
        ranks = [torch.load(tmp_path / f"{case}{i}.pt", weights_only=True) for i in (0, 1)]
        expected = whole(case)
        found = ranks[0]
        found["input"] = torch.cat([r["input"] for r in ranks], dim=1)
        assert list(found) == list(expected)
        for name, value in expected.items():
            if name != "input":
                assert torch.equal(found[name], ranks[1][name]), (case, name)
            assert torch.allclose(found[name], value, rtol=1e-8, atol=1e-9), (case, name)


@pytest.fixture
def two_ranks(monkeypatch) -> list[int]:
    """As if there were a second rank without images; gives the sizes of what is reduced."""
    sizes: list[int] = []
    monkeypatch.setattr("densekd.ops.collectives.world_size", lambda: 2)
    monkeypatch.setattr(
        "densekd.ops.collectives.all_reduce_sum", lambda x: sizes.append(x.numel()) or x
    )
    return sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_like_batch_norm_in_any_precision_and_layout(dtype, two_ranks) -> None:
    norm = nn.BatchNorm2d(4)
    mean, var = torch.zeros(4), torch.ones(4)
    x = torch.randn(3, 4, 5, 6) * 3 + 2
    x = x.to(dtype, memory_format=torch.channels_last).requires_grad_()
    y = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    weights = torch.randn(3, 4, 5, 6)
    expected = norm(x)
    (expected * weights).sum().backward()
    found = synchronised_batch_norm(y, mean, var, norm.weight, norm.bias)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    (found * weights).sum().backward()
    tolerance = (
        {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-3, "rtol": 2e-2}
    )
    torch.testing.assert_close(found, expected, **tolerance)
    torch.testing.assert_close(y.grad, x.grad, **tolerance)
    torch.testing.assert_close(mean, norm.running_mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(var, norm.running_var, atol=1e-4, rtol=1e-5)
    assert two_ranks == [2 * 4 + 1, 2 * 4]  # one reduction forward, one back


def test_hooks_stay_and_only_training_is_synchronised(two_ranks) -> None:
    net = synchronise(synchronise(network()))
    seen = []
    net[3].register_forward_hook(lambda module, args, output: seen.append(output))
    assert [type(m) for m in net] == [type(m) for m in network()]
    x = torch.randn(2, 3, 6, 5)
    with torch.no_grad():
        net.eval()(x)
        assert not two_ranks
        net.train()(x)
    assert len(two_ranks) == 8
    assert len(seen) == 2


def test_alone_nothing_changes() -> None:
    torch.manual_seed(0)
    net = network()
    x = torch.randn(2, 3, 6, 5)
    expected = net(x)
    assert torch.equal(synchronise(net)(x), expected)
