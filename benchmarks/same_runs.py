"""A fixed set of short runs and scores, reduced to digests: do two checkouts compute the same, bit for bit?

    python -m benchmarks.same_runs --output before.json            # in the one checkout
    python -m benchmarks.same_runs --compare before.json           # in the other, on the same machine

The runs train 20 steps on the built-in scenes, once a task, with every term, accumulation, an averaged student, the
data cache and the stored teacher; one has two ranks. With ``DENSEKD_SHARED`` the
published CamVid checkpoints are scored too. Digests depend on the processor and on torch, so they are compared on one
machine and never stored in the repository.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

STEPS = "20"
TASKS = ("segmentation", "detection", "depth")
# What a step logs that depends on the clock or the machine.
LOOSE = {"images_per_s", "memory_gb"}
EVERYTHING = [
    "--train.steps", STEPS, "--train.accumulate", "2", "--train.ema", "0.9", "--data.augment_epochs", "2",
    "--train.save_every", "10", "--train.evaluate_every", "10",
]  # fmt: skip
CHECKPOINTS = {
    "ESPNet_base.pth": "camvid/espnet",
    "ESPNet_pixel_pair_unlabelled.pth": "camvid/espnet",
    "ESPNetC_pixel_pair.pth": "camvid/espnet_c",
}


def densekd(*words: str, ranks: int = 1, cache: Path) -> None:
    """One command in a process of its own, with one thread a rank."""
    launcher = [sys.executable, "-m", "densekd"]
    if ranks > 1:
        launcher = [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "-m", "densekd",
        ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DENSEKD_CACHE": str(cache)}
    done = subprocess.run(
        [*launcher, *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"densekd {' '.join(words)} failed:\n{done.stdout}\n{done.stderr}")


def digest_of(value: Any) -> str:
    """Of tensors, numbers and texts in nested dicts and lists, by content."""
    digest = hashlib.blake2b(digest_size=16)

    def feed(x: Any, name: str) -> None:
        if isinstance(x, torch.Tensor):
            digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
            digest.update(x.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(x, dict):
            for key in sorted(x, key=str):
                feed(x[key], f"{name}.{key}")
        elif isinstance(x, (list, tuple)):
            for i, item in enumerate(x):
                feed(item, f"{name}.{i}")
        else:
            digest.update(f"{name} {x!r}".encode())

    feed(value, "")
    return digest.hexdigest()


def run_digests(folder: Path) -> dict[str, str]:
    """Weights, optimizer, discriminator, scores and logged values of a finished run."""
    state = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if k not in LOOSE} for row in rows]
    result = json.loads((folder / "result.json").read_text())
    parts = ("student", "optimizer", "ema", "discriminator", "discriminator_optimizer")
    return {
        **{name: digest_of(state[name]) for name in parts},
        "scores": digest_of(result["scores"]),
        "log": digest_of(kept),
    }


def measure(work: Path) -> dict[str, Any]:
    """Every run and every score, by name."""
    out: dict[str, Any] = {}
    scenes, runs, cache = work / "scenes", work / "runs", work / "cache"
    densekd(
        "data", "synthesize", str(scenes), "--train", "24", "--val", "6", "--height", "96", "--width", "192",
        cache=cache,
    )  # fmt: skip

    def distil(task: str, name: str, *more: str, ranks: int = 1) -> None:
        teacher = runs / f"{task}_teacher" / "checkpoints" / "student.safetensors"
        densekd(
            "distill", f"demo/{task}_student", "--out", str(runs), "--name", name, "--data.root", str(scenes),
            "--teacher.weights", str(teacher), *EVERYTHING, *more, ranks=ranks, cache=cache,
        )  # fmt: skip
        out[name] = run_digests(runs / name)
        print(name, out[name], flush=True)

    for task in TASKS:
        name = f"{task}_teacher"
        densekd(
            "train", f"demo/{task}_teacher", "--out", str(runs), "--name", name, "--data.root", str(scenes),
            "--train.steps", STEPS, cache=cache,
        )  # fmt: skip
        out[name] = run_digests(runs / name)
        distil(task, f"{task}_distilled")
        distil(
            task,
            f"{task}_stored",
            "--data.cache",
            "disk",
            "--distill.teacher_cache.storage",
            "fp16",
        )
    distil("segmentation", "segmentation_two_ranks", "--data.batch_size", "2", ranks=2)
    shared = Path(os.environ.get("DENSEKD_SHARED", "../shared"))
    if (shared / "camvid").is_dir():
        for file, recipe in CHECKPOINTS.items():
            scores = work / f"{file}.json"
            densekd(
                "evaluate", recipe, "--data.root", str(shared / "camvid"), "--split", "val", "--weights",
                str(shared / "checkpoints" / "espnet_camvid" / file), "--output", str(scores), cache=cache,
            )  # fmt: skip
            content = json.loads(scores.read_text())
            out[file] = {k: content[k] for k in ("miou", "pixel_accuracy", "iou")}
            print(file, out[file]["miou"], flush=True)
    return out


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """A line for every value that is not the same."""
    lines = []
    for name in sorted({*before, *after}):
        old, new = before.get(name, {}), after.get(name, {})
        lines += [f"{name}: {key}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="JSON file to write; must not exist")
    parser.add_argument("--compare", type=Path, help="what another checkout wrote")
    arguments = parser.parse_args()
    if arguments.output is not None and arguments.output.exists():
        raise SystemExit(f"--output {arguments.output} exists; give another path")
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    if arguments.compare is not None:
        changed = differences(json.loads(arguments.compare.read_text()), result)
        print("\n".join(changed) if changed else "equal to the bit")
        raise SystemExit(1 if changed else 0)


if __name__ == "__main__":
    main()
