"""The work for a GPU machine: its tests, the benchmarks, and a real CamVid training. `make gpu` runs all of it.

    DENSEKD_CAMVID=FOLDER python -m benchmarks.gpu [--stage tests teacher student step ...] [--budget 540]
    python -m benchmarks.gpu --dry       # the same stages on the CPU, tiny, on the embedded scenes

Each stage keeps to its budget of seconds, so each fits a command of its own: a short run measures images/s and the
time of an evaluation, and the real run takes as many steps as then fit. Every stage writes its files to one folder,
results/gpu/DATE by default. The student learns from the teacher of the same folder (or from --teacher FILE). The words
after -- go to densekd, as in: --stage student -- --data.batch_size 16
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from benchmarks import measure
from densekd.engine.folder import RunFolder
from densekd.engine.log import read_metrics
from densekd.models.weight_files import read_metadata, read_weights, write_state

# Stage -> script of this folder that is run on the device.
BENCHMARKS = {
    "step": "step",
    "pair_wise": "pair_wise",
    "upsampled_loss": "upsampled_loss",
    "evaluation": "evaluation",
    "norms": "norms",
    "teacher_forms": "teacher",
    "teacher_cache": "teacher_cache",
    "data_path": "data_path",
    "growth": "growth",
}
STAGES = ("tests", "teacher", "student", *BENCHMARKS)
RECIPES = {
    "teacher": ("train", "camvid/psp_efficientnet_lite2"),
    "student": ("distill", "camvid/espnet_from_pspnet"),
}
PASSES = (
    0.614,
    0.651,
)  # mIoU whose first passing is timed: the paper's distilled ESPNet, without and with extra images
RESERVE = 20.0  # seconds for start-up noise, the last checkpoint and the record
GPU_SETTINGS = {
    "data.cache": "device",
    "train.amp": "bf16",
    "train.channels_last": "true",
    "train.log_every": "50",
}
DRY_SETTINGS = {
    "data.dataset": "scenes",
    "data.cache": "device",
    "data.options": "{height: 64, width: 128}",
    "data.train_options": "{length: 6}",
    "data.val_options": "{length: 2}",
    "data.crop": "[64, 128]",
    "data.batch_size": "2",
    "train.log_every": "1",
    "optim.warmup_steps": "0",
}
DRY_BACKBONE = "{backbone: tf_efficientnet_lite0, psp_channels: 16}"
DRY_OWN = {
    "teacher": {"model.options": DRY_BACKBONE},
    "student": {"model.options": "{p: 1, q: 1}", "teacher.options": DRY_BACKBONE},
}


def environment() -> dict[str, str]:
    """The package from this tree, whether or not it is installed."""
    path = os.pathsep.join([str(measure.ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), "PYTHONUNBUFFERED": "1"}


def execute(command: list[str], seconds: float, watch: Callable[[], None] | None = None) -> int:
    """Run it from the repository's root; past `seconds` ask it to stop (a run saves itself then)."""
    print("$", " ".join(command), flush=True)
    end = time.monotonic() + seconds
    child = subprocess.Popen(command, cwd=measure.ROOT, env=environment())
    try:
        while child.poll() is None:
            if watch is not None:
                watch()
            if time.monotonic() > end:
                child.send_signal(signal.SIGINT)
                try:
                    child.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    child.kill()
            time.sleep(0.2)
    finally:
        if child.poll() is None:
            child.kill()
    if watch is not None:
        watch()
    return child.wait()


class Watch:
    """Notes when each score of a run was written: its log has steps, not times."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.begin = time.monotonic()
        self.scores: list[dict[str, float]] = []

    def __call__(self) -> None:
        rows = [row for row in read_metrics(self.folder.metrics) if "val/miou" in row]
        for row in rows[len(self.scores) :]:
            seconds = round(time.monotonic() - self.begin, 1)
            self.scores.append({"step": row["step"], "seconds": seconds, "miou": row["val/miou"]})

    def passed(self) -> dict[str, float | None]:
        """mIoU -> seconds from the command's start to the first score at or above it."""
        return {
            str(level): next((s["seconds"] for s in self.scores if s["miou"] >= level), None)
            for level in PASSES
        }


def densekd(
    verb: str,
    recipe: str,
    folder: RunFolder,
    settings: dict[str, str],
    extra: list[str],
    device: str,
) -> list[str]:
    """A command line of densekd's own."""
    words = [sys.executable, "-m", "densekd", verb, recipe, "--device", device]
    words += ["--out", str(folder.path.parent), "--name", folder.path.name]
    for key, value in settings.items():
        words += [f"--{key}", value]
    return words + extra


def plan(folder: RunFolder, batch: int, seconds: float, evaluations: int, spent: float) -> int:
    """Steps that fit in `seconds` with that many evaluations, after a short run that took `spent` of them."""
    rows = [row for row in read_metrics(folder.metrics) if "images_per_s" in row]
    steps = [0, *(row["step"] for row in rows)]
    trained = sum(
        (b - a) * batch / row["images_per_s"]
        for a, b, row in zip(steps[:-1], steps[1:], rows, strict=True)
    )
    looped = json.loads(folder.result.read_text())["seconds"]  # training and one evaluation
    start_up, evaluation = max(0.0, spent - looped), max(0.0, looped - trained)
    left = seconds - spent - RESERVE - start_up - evaluations * evaluation
    return max(1, int(0.95 * left * rows[-1]["images_per_s"] / batch))  # the last row: warm


def train_stage(stage: str, args: argparse.Namespace, output: Path, device: str) -> dict[str, Any]:
    """A run of densekd within the budget; weights and record go to `output`."""
    begin = time.monotonic()
    verb, recipe = RECIPES[stage]
    if args.dry:
        settings = {**DRY_SETTINGS, **DRY_OWN[stage], "data.workers": "0"}
    else:
        workers = max(1, min(14, (os.cpu_count() or 2) - 2))
        settings = {**GPU_SETTINGS, "data.root": camvid(), "data.workers": str(workers)}
    if stage == "student":
        settings["teacher.weights"] = str(teacher_weights(args, output))
    runs = Path(tempfile.mkdtemp(prefix=f"densekd-{stage}-"))  # checkpoints: large, not kept

    steps = args.steps
    if steps is None:
        short = RunFolder(runs / "short")
        probe = {"train.steps": "3" if args.dry else "200", "train.evaluate_every": "0"}
        words = densekd(verb, recipe, short, {**settings, **probe}, args.extra, device)
        status = execute(words, args.budget / 2)
        if status != 0:
            return {"status": status, "said": "the short run that measures speed failed"}
        tree = json.loads(short.result.read_text())["config"]
        budget = 40.0 if args.dry else args.budget
        steps = plan(short, tree["data"]["batch_size"], budget, 20, time.monotonic() - begin)
        steps = min(steps, 4) if args.dry else steps
    folder = RunFolder(runs / stage)
    settings |= {"train.steps": str(steps), "train.evaluate_every": str(max(1, steps // 20))}
    words = densekd(verb, recipe, folder, settings, args.extra, device)
    watch = Watch(folder)
    left = args.budget - (time.monotonic() - begin) - RESERVE / 2
    status = execute(words, left, watch)
    said = folder.result.read_text() if folder.result.exists() else "null"
    result: dict[str, Any] = {
        "status": status,
        "densekd": without_folders(shlex.join(["densekd", *words[3:]]), runs, output),
        "scores": watch.scores,
        "seconds_to_miou": watch.passed(),
        "result": json.loads(without_folders(said, runs, output)),
    }
    if folder.best.exists():
        half = stage == "teacher"  # half precision: large networks are kept small
        keep_weights(folder.best, output / f"{stage}.safetensors", half=half)
    if folder.metrics.exists():
        shutil.copyfile(folder.metrics, output / f"{stage}-metrics.jsonl")
    shutil.rmtree(runs)
    return result


def without_folders(text: str, runs: Path, output: Path) -> str:
    """What is kept names no folder of this machine."""
    data = os.environ.get("DENSEKD_CAMVID")
    if data:
        text = text.replace(str(Path(data).resolve()), "$DENSEKD_CAMVID")
    text = text.replace(str(runs), "runs").replace(f"{output}{os.sep}", "")
    return text.replace(f"{measure.ROOT}{os.sep}", "")


def camvid() -> str:
    folder = os.environ.get("DENSEKD_CAMVID")
    if not folder:
        raise SystemExit(
            "DENSEKD_CAMVID is not set: give CamVid's folder (or a packed copy), or --dry"
        )
    return str(Path(folder).resolve())


def teacher_weights(args: argparse.Namespace, output: Path) -> Path:
    path = args.teacher or output / "teacher.safetensors"
    if not path.exists():
        raise SystemExit(
            f"{path} does not exist: run --stage teacher first, or give --teacher FILE"
        )
    return path.resolve()


def keep_weights(source: Path, target: Path, *, half: bool) -> None:
    """Copy a weights file with its metadata, in half precision if asked (they load into float32 networks)."""
    state = read_weights(source)
    if half:
        state = {k: v.half() if v.dtype == torch.float32 else v for k, v in state.items()}
    write_state(state, target, read_metadata(source))


def tests_stage(args: argparse.Namespace) -> dict[str, Any]:
    """The tests marked gpu; counts, and the text of what failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        words = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-rs"]
        words += ["-p", "no:cacheprovider", f"--junitxml={report}"]
        status = execute(words, args.budget)
        if not report.exists():
            return {"status": status}
        suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    bad = {
        f"{case.get('classname')}::{case.get('name')}": (case[0].text or "")[-2000:]
        for case in suite.iter("testcase")
        if len(case) and case[0].tag in ("failure", "error")
    }
    return {"status": status, **counts, "failed": bad}


def benchmark_stage(name: str, args: argparse.Namespace, device: str) -> dict[str, Any]:
    """One of `BENCHMARKS` on this device; what it measured, without the record of how that this stage writes itself."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.json"
        words = [sys.executable, "-m", f"benchmarks.{BENCHMARKS[name]}", "--device", device]
        words += ["--output", str(path), *(["--dry"] if args.dry else [])]
        if args.pairs is not None:
            words += ["--pairs", str(args.pairs)]
        status = execute(words, args.budget)
        measured = json.loads(path.read_text()) if path.exists() else {}
    described = measure.record("", torch.device(device))
    return {"status": status, **{k: v for k, v in measured.items() if k not in described}}


def run_stage(stage: str, args: argparse.Namespace, output: Path, device: str) -> dict[str, Any]:
    if stage == "tests":
        return tests_stage(args)
    if stage in BENCHMARKS:
        return benchmark_stage(stage, args, device)
    return train_stage(stage, args, output, device)


def main(arguments: list[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    extra = []
    if "--" in given:
        cut = given.index("--")
        given, extra = given[:cut], given[cut + 1 :]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument(
        "--dry", action="store_true", help="tiny, on the CPU, on the embedded scenes"
    )
    parser.add_argument("--budget", type=float, default=540.0, help="seconds a stage")
    parser.add_argument(
        "--steps", type=int, help="of the trainings, instead of what fits the budget"
    )
    parser.add_argument("--pairs", type=int, help="rounds of the benchmarks, instead of their own")
    parser.add_argument("--teacher", type=Path, help="weights for the student's stage")
    parser.add_argument("--output", type=Path, help="results/gpu/DATE by default")
    args = parser.parse_args(given)
    args.extra = extra
    device = "cpu" if args.dry else "cuda"
    if not args.dry:
        measure.pick("cuda")
        if {"teacher", "student", "data_path"} & set(args.stage):
            camvid()  # said before an hour's work, not after
    stamp = datetime.now(UTC).strftime("%Y-%m-%d" + ("-dry-%H%M%S" if args.dry else ""))
    output: Path = (args.output or measure.ROOT / "results" / "gpu" / stamp).resolve()
    output.mkdir(parents=True, exist_ok=True)
    failed = []
    for stage in args.stage:
        path = measure.output_path(output / f"{stage}.json", stage)
        begin = time.monotonic()
        found = run_stage(stage, args, output, device)
        seconds = round(time.monotonic() - begin, 1)
        about = {"stage": stage, "dry": args.dry, "seconds": seconds, **found}
        measure.write(measure.record(f"gpu-{stage}", torch.device(device), **about), path)
        said = f"; mIoU {found['scores'][-1]['miou']:.4f}" if found.get("scores") else ""
        print(f"{stage}: status {found['status']} in {seconds:.0f} s{said}; {path}", flush=True)
        if found["status"] != 0:
            failed.append(stage)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
