"""``densekd demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from densekd.cli.arguments import parse, split_overrides
from densekd.workflows.recipe import run_folder


def command(arguments: list[str]) -> int:
    own, overrides = split_overrides(arguments)

    def demo(
        task: Literal["segmentation", "detection", "depth"] = "segmentation",
        name: str | None = None,
        out: Path = Path("runs"),
        seeds: int = 1,
        device: str = "auto",
    ) -> int:
        """Train a teacher on built-in street scenes, then the student alone and with one term more a run, and compare.

        Needs no data and no GPU: a few minutes on two cores. Ends with the table, side-by-side pictures and
        a page (report.html) in the folder OUT/NAME. The same command goes on where it was stopped.

        Args:
            task: what is predicted: classes of pixels, boxes, or metres.
            name: the folder under --out; by default demo, demo_detection or demo_depth.
            out: where run folders are made.
            seeds: runs a row; from 2 on the table has mean ± std.
            device: auto, cpu, cuda, cuda:N or mps.
        """
        own_name = "demo" if task == "segmentation" else f"demo_{task}"
        folder = run_folder(out, name or own_name, "demo", "demo")
        from densekd.workflows.demo import demo as run_demo

        return run_demo(folder, overrides=overrides, task=task, device=device, seeds=seeds)

    return parse(demo, "demo", own)
