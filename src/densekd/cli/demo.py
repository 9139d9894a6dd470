"""``densekd demo``."""

from __future__ import annotations

from pathlib import Path

from densekd.cli.arguments import parse, run_folder, split_overrides


def command(arguments: list[str]) -> int:
    own, overrides = split_overrides(arguments)

    def demo(
        name: str = "demo",
        out: Path = Path("runs"),
        seeds: int = 1,
        device: str = "auto",
    ) -> int:
        """Train a teacher on built-in street scenes, then the student alone, +Pi, +Pi+Pa and +Pi+Pa+Ho, and compare.

        Needs no data and no GPU: a few minutes on two cores. Ends with the table and side-by-side pictures in the
        folder OUT/NAME. The same command goes on where it was stopped.

        Args:
            name: the folder under --out.
            out: where run folders are made.
            seeds: runs a row; from 2 on the table has mean ± std.
            device: auto, cpu, cuda, cuda:N or mps.
        """
        folder = run_folder(out, name, "demo", "demo")
        from densekd.workflows.demo import demo as run_demo

        return run_demo(folder, overrides=overrides, device=device, seeds=seeds)

    return parse(demo, "demo", own)
