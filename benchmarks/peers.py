"""The same distillation step by plain PyTorch, by torchdistill and by densekd, in turns in one process.

    OMP_NUM_THREADS=1 python -m benchmarks.peers [--pair NAME ...] [--pairs 20] [--clock cpu] [--peers FOLDER]

torchdistill is not a package of densekd's: ``pip install --no-deps --target FOLDER torchdistill pyyaml`` puts it where
``--peers FOLDER`` finds it; without it, its arm is left out and the record says so. All arms have equal networks with
equal weights (a network each), one batch, cross-entropy plus KL at temperature 1 of logits at the labels' size, and SGD
with momentum; "pi_pa" adds the pair-wise term, which the peers do not have. "tuned" has the settings that
`densekd tune` keeps here; "int8 teacher" has OpenVINO's int8 on top, where a run accepts it. Their losses show
whether the arms compute the same.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import measure
from benchmarks.cases import SIZE
from densekd.build.run import assemble
from densekd.build.runtimes import installed
from densekd.config.load import make_config
from densekd.config.schema import Config
from densekd.config.tree import apply_overrides
from densekd.engine.launch import Process, started
from densekd.engine.optim import set_lr
from densekd.errors import UserError
from densekd.models.taps import Taps
from densekd.types import Batch
from densekd.workflows import tune
from densekd.workflows.forms import training_set

PAIRS: dict[str, dict[str, Any]] = {
    "lraspp_from_deeplabv3_r50": {
        "model": {"name": "torchvision", "options": {"arch": "lraspp_mobilenet_v3_large"}},
        "teacher": {"name": "torchvision", "options": {"arch": "deeplabv3_resnet50"}},
        "size": (2, 256, 256),
    },
    "espnet_from_pspnet_r101": {
        "model": {"name": "espnet"},
        "teacher": {"name": "pspnet_resnet101"},
        "size": (2, 192, 192),
    },
}
DRY = {
    "model": {"name": "espnet_c", "options": {"p": 1, "q": 1}},
    "teacher": {"name": "espnet", "options": {"p": 1, "q": 1}},
    "size": (2, 64, 64),
}
INT8 = "openvino_int8"
LR, MOMENTUM = 1e-6, 0.9  # so small that the weights stay what they are
TERMS: dict[str, dict[str, Any]] = {
    "pi": {"pixel_wise": {"weight": 1}},
    "pi_pa": {"pixel_wise": {"weight": 1}, "pair_wise": {"weight": 1}},
}


def recipe(pair: dict[str, Any], terms: str, changes: dict[str, Any] | None = None) -> Config:
    n, height, width = pair["size"]
    tree: dict[str, Any] = {
        "task": "segmentation",
        "model": copy.deepcopy(pair["model"]),
        "teacher": {**copy.deepcopy(pair["teacher"]), "allow_untrained": True},
        "data": {"dataset": "scenes", "batch_size": n, "crop": [height, width]},
        "distill": copy.deepcopy(TERMS[terms]),
        "optim": {"name": "sgd", "lr": LR, "momentum": MOMENTUM, "weight_decay": 0},
    }
    apply_overrides(tree, changes or {})
    return make_config(tree, "benchmarks.peers")


class Logits(nn.Module):
    """A tapped network as its peers would have it: normalised images in, logits at the images' size out."""

    def __init__(self, network: Taps) -> None:
        super().__init__()
        self.network = network
        self.logits = nn.Identity()  # torchdistill's hooks need a module that gives them

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images).prediction
        size = images.shape[-2:]
        return self.logits(F.interpolate(logits, size, mode="bilinear", align_corners=False))


def plain(student: nn.Module, teacher: nn.Module, batch: Batch, ignore: int) -> Callable[[], float]:
    """The loop that anyone would write."""
    student.train(), teacher.eval()
    optimizer = torch.optim.SGD(student.parameters(), lr=LR, momentum=MOMENTUM)

    def step() -> float:
        optimizer.zero_grad()
        with torch.no_grad():
            target = teacher(batch.images)
        logits = student(batch.images)
        soft = F.kl_div(logits.log_softmax(1), target.softmax(1), reduction="none").sum(1).mean()
        loss = F.cross_entropy(logits, batch.targets.long(), ignore_index=ignore) + soft
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def torchdistill(
    student: nn.Module, teacher: nn.Module, batch: Batch, ignore: int
) -> Callable[[], float]:
    """A step of torchdistill's own box: its hooks, its KD loss, its optimizer step."""
    from torchdistill.core.distillation import get_distillation_box  # pyrefly: ignore

    pixels = batch.targets.numel() / len(batch)
    modules = {side: {"forward_proc": "forward_batch_only", "forward_hook": {"input": [], "output": ["logits"]}}
               for side in ("student", "teacher")}  # fmt: skip
    config = {
        "num_epochs": 1,
        "teacher": {**modules["teacher"], "requires_grad": False},
        "student": {**modules["student"], "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": {"lr": LR, "momentum": MOMENTUM}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {
                "sub_terms": {
                    "kd": {
                        "criterion": {
                            "key": "KDLoss",
                            "kwargs": {
                                "student_module_path": "logits",
                                "student_module_io": "output",
                                "teacher_module_path": "logits",
                                "teacher_module_io": "output",
                                "temperature": 1.0,
                                "alpha": 1.0,
                                # Its KL is summed over the pixels of an image.
                                "beta": 1 / pixels,
                                "reduction": "batchmean",
                                "ignore_index": ignore,
                            },
                        },
                        "weight": 1.0,
                    }
                }
            },
        },
    }
    box = get_distillation_box(teacher, student, {}, config, batch.images.device, None, False, 1)
    box.student_model.train()
    box.teacher_model.eval()
    targets = batch.targets.long()

    def step() -> float:
        loss = box.forward_process(batch.images, targets, None)
        box.post_forward_process(loss=loss)
        return loss.item()

    return step


def densekd(config: Config, process: Process) -> tuple[Callable[[], float], Any, Any]:
    """A step of a run of the recipe; with its run and its batch."""
    run = assemble(config, process, distil=True, sets=training_set(config, made_up=True))
    set_lr(run.step.optimizer, LR)
    torch.manual_seed(0)
    batch = run.first_batch().to(process.device, config.train.channels_last)
    return lambda: run.step([batch], 1)["loss"], run, batch


def measure_pair(
    pair: dict[str, Any], process: Process, rounds: measure.Rounds, peers: bool
) -> dict[str, Any]:
    """The seconds of each arm, over those of plain PyTorch and of torchdistill."""
    kept = tune.tune(recipe(pair, "pi_pa"), made_up=True, device=str(process.device), rounds=5)
    arms: dict[str, Callable[[], float]] = {}
    step, run, batch = densekd(recipe(pair, "pi"), process)
    ignore = run.task.ignore_index
    # The teacher as its peers have it: not folded, and as loaded.
    unfolded = recipe(pair, "pi", {"teacher.fold_norms": False})
    _, other, _ = densekd(unfolded, process)
    networks = [Logits(other.step.distiller.student), Logits(other.step.distiller.teacher.network)]
    arms["plain"] = plain(*copy.deepcopy(networks), batch, ignore)
    if peers:
        arms["torchdistill"] = torchdistill(*copy.deepcopy(networks), batch, ignore)
    arms["densekd pi"] = step
    arms["densekd pi_pa"], _, _ = densekd(recipe(pair, "pi_pa"), process)
    if kept["settings"]:
        arms["densekd pi tuned"], _, _ = densekd(recipe(pair, "pi", kept["settings"]), process)
        arms["densekd pi_pa tuned"], _, _ = densekd(
            recipe(pair, "pi_pa", kept["settings"]), process
        )
    refused = None
    if installed(INT8):
        try:
            int8 = {**kept["settings"], "teacher.runtime": INT8}
            arms["densekd pi int8 teacher"], _, _ = densekd(recipe(pair, "pi", int8), process)
        except UserError as error:  # it changes a term by more than a run accepts
            refused = str(error)
    losses = {name: call() for name, call in arms.items()}
    seconds = rounds.seconds(arms, process.device)
    below = {
        base: {
            name: measure.ratio(seconds[base], values)
            for name, values in seconds.items()
            if name != base
        }
        for base in ("plain", "torchdistill")
        if base in seconds
    }
    return {
        "student": pair["model"]["name"],
        "teacher": pair["teacher"]["name"],
        "batch": list(pair["size"]),
        "tuned": kept["settings"],
        "tuned_errors": {
            str(lever["changes"]): [lever.get("loss_error"), lever.get("gradient_error")]
            for lever in kept["levers"]
        },
        "int8_refused": refused,
        "losses": losses,
        "seconds": {name: measure.spread(values) for name, values in seconds.items()},
        "times_faster": below,
        "raw_seconds": seconds,
    }


def as_table(pairs: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, found in pairs.items():
        for arm, row in found["seconds"].items():
            faster = [
                measure.with_interval(found["times_faster"][base][arm], 2)
                if arm in found["times_faster"].get(base, {})
                else ""
                for base in ("plain", "torchdistill")
            ]
            rows.append([name, arm, f"{row['median']:.3f}", *faster, f"{found['losses'][arm]:.4f}"])
    head = ["pair", "step by", "s", "times faster than plain", "than torchdistill", "loss"]
    return measure.table(head, rows)


def main(arguments: list[str] | None = None) -> int:
    parser = measure.make_parser("peers", __doc__)
    parser.add_argument("--pair", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--peers", type=Path, help="folder that torchdistill was installed into")
    parser.add_argument("--size", **SIZE)
    args = parser.parse_args(arguments)
    device = measure.pick(args.device, args.clock)
    path, rounds = measure.begin(args, f"peers-{device.type}")
    if args.peers is not None:
        sys.path.append(str(args.peers))
    version = None
    if args.peers is not None:
        import torchdistill as package  # pyrefly: ignore

        version = package.__version__
    with started(device.type) as process:
        pairs = measure.one_by_one(
            ["dry"] if args.dry else args.pair,
            lambda name: measure_pair(
                {**(DRY if args.dry else PAIRS[name]), **({"size": tuple(args.size)} if args.size else {})},
                process,
                rounds,
                version is not None,
            ),
        )  # fmt: skip
    return measure.finish(
        "peers", path, device, rounds, as_table(pairs), pairs_of_networks=pairs, torchdistill=version
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
