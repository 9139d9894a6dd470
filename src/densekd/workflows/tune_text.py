"""What `tune` measured, for people: a line a lever, and the settings to take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from densekd.workflows.bench_text import table


def as_text(result: Mapping[str, Any]) -> str:
    """The table of levers, and what was kept."""
    environment = result["environment"]
    batch = "×".join(map(str, result["batch"]))
    lines = [
        f"{result['processor'] if result['device'] == 'cpu' else result['device']}, threads {environment['threads']}, "
        f"torch {environment['versions'].get('torch')}, batch {batch}",
        "",
    ]
    rows = [
        [
            settings_text(lever["changes"]),
            ratio_text(lever["ratio"]) if "ratio" in lever else "",
            f"{lever['loss_error']:.0e}" if "ratio" in lever else "",
            f"{lever['gradient_error']:.0e}" if "ratio" in lever else "",
            "kept" if lever["kept"] else lever["why"],
        ]
        for lever in result["levers"]
    ]
    if rows:
        head = ["tried on top of what was kept", "time of a step", "losses", "gradients", ""]
        lines += table(head, rows)
    else:
        lines.append("nothing to try: the recipe has every form that this machine can take")
    lines.append("")
    lines += [f"remark: {remark}" for remark in result["remarks"]]
    if not result["settings"]:
        return "\n".join([*lines, "the recipe is at its fastest as it is"])
    flags = " ".join(f"--{key} {str(value).lower()}" for key, value in result["settings"].items())
    return "\n".join(
        [
            *lines,
            f"together a step takes {ratio_text(result['ratio'])} of its time ({result['seconds']['median']:.3f} s)",
            f"settings: {flags}",
            "runs of this recipe with --train.auto true take them by themselves"
            if result["remembered"]
            else "not remembered: the tolerance is not the default one",
        ]
    )


def settings_text(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {str(value).lower()}" for key, value in changes.items())


def ratio_text(row: Mapping[str, Any]) -> str:
    """A median and its interval: ``0.74 [0.71, 0.77]``."""
    low, high = row["interval"]
    return f"{row['median']:.2f} [{low:.2f}, {high:.2f}]"
