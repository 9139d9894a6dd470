"""Writes the tables of pages from results/, between ``<!-- results: NAME -->`` and ``<!-- end -->``.

    python docs/make_tables.py

A test fails while a page shows other numbers than the files. NAME is a function of this file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "docs" / "choosing.md",
    ROOT / "docs" / "segmentation.md",
    ROOT / "docs" / "detection.md",
    ROOT / "docs" / "depth.md",
    ROOT / "docs" / "paper.md",
    ROOT / "results" / "idd_lite" / "README.md",
]
BLOCK = re.compile(r"<!-- results: (?P<name>\w+) -->\n.*?<!-- end -->", re.S)

ALONE = "student alone"
Row = dict[str, list[float]]  # metric -> its value for each seed


def rows_of(name: str) -> dict[str, Row]:
    """Title -> scores of a file that `densekd ablate` wrote, under results/."""
    rows = json.loads((ROOT / "results" / name).read_text(encoding="utf-8"))
    return {row["title"]: row["scores"] for row in rows}


def spread(values: list[float], digits: int) -> str:
    """ "47.94 ± 0.31": mean and standard deviation over the seeds; one seed stands alone."""
    text = f"{mean(values):.{digits}f}"
    return f"{text} ± {stdev(values):.{digits}f}" if len(values) > 1 else text


def percent(values: list[float]) -> list[float]:
    return [100 * value for value in values]


def gains(rows: dict[str, Row], metric: str, title: str, over: str = ALONE) -> list[float]:
    """Seed by seed: how much better `title` is than `over`."""
    pairs = zip(rows[title][metric], rows[over][metric], strict=True)
    return [ours - base for ours, base in pairs]


def demo() -> str:
    rows = rows_of("demo/results.json")
    lines = ["| network | mIoU on val (%) |", "| --- | ---: |"]
    lines += [
        f"| {title} | {spread(percent(scores['miou']), 2)} |" for title, scores in rows.items()
    ]
    return "\n".join(lines)


def camvid() -> str:
    rows = rows_of("camvid/whole_images.json")
    lines = [f"| {' | '.join(rows)} |", f"|{' ---: |' * len(rows)}"]
    cells = [spread(percent(scores["miou"]), 2) for scores in rows.values()]
    return "\n".join([*lines, f"| {' | '.join(cells)} |"])


# What stands in the overview: name, file, metric, factor, digits, title of the distilled row.
SETS = [
    ("built-in scenes, 16 of 400 labelled", "demo", "miou", 100, 1, "+Pi +Pa", "mIoU ↑"),
    ("IDD Lite, 88 of 1403 photos labelled", "idd_lite", "miou", 100, 1, "+Pi +Pa", "mIoU ↑"),
    ("VOC subset, 260 + 80 photos", "voc2007_subset", "ap50", 100, 1, "+Pi +Pa", "AP50 ↑"),
    ("built-in scenes, boxes", "demo_detection", "ap", 100, 1, "+Pi +Pa", "AP ↑"),
    ("built-in scenes, depth", "demo_depth", "abs_rel", 1, 3, "+Pi +Pa", "AbsRel ↓"),
    ("two rooms, 142 + 24 photos", "kinect_rooms", "abs_rel", 1, 3, "+Pi +Pa", "AbsRel ↓"),
]


def overview(scores: tuple[str, ...] = ("miou", "ap", "ap50", "abs_rel"), root: str = "") -> str:
    """The sets with one of these scores; `root` leads from the page to the repository's root."""
    lines = [
        "| data | score | constant guess | teacher | student alone | distilled | seeds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, folder, metric, factor, digits, best, label in SETS:
        if metric not in scores:
            continue
        rows = rows_of(f"{folder}/results.json")
        teacher = next(title for title in rows if title.startswith("teacher"))
        cells = [
            spread([factor * value for value in rows[title][metric]], digits)
            for title in ("constant guess", teacher, ALONE, best)
        ]
        seeds = len(rows[best][metric])
        link = f"[{name}]({root}results/{folder}/README.md)"
        lines.append(f"| {link} | {label} | {' | '.join(cells)} | {seeds} |")
    return "\n".join(lines)


def segmentation() -> str:
    return overview(("miou",), "../")


def detection() -> str:
    return overview(("ap", "ap50"), "../")


def depth() -> str:
    return overview(("abs_rel",), "../")


def few_labels() -> str:
    lines = [
        "| data | teacher | alone, few labels | distilled, the same labels | gain | alone, all labels |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, folder in (
        ("scenes, 16 of 400 labelled", "demo"),
        ("IDD Lite, 88 of 1403 photos labelled", "idd_lite"),
    ):
        rows = rows_of(f"{folder}/results.json")
        teacher = next(title for title in rows if title.startswith("teacher"))
        full = rows.get("student alone, all labels")
        cells = [spread(percent(rows[t]["miou"]), 1) for t in (teacher, ALONE, "+Pi +Pa")]
        cells.append(spread(percent(gains(rows, "miou", "+Pi +Pa")), 1))
        cells.append("not run" if full is None else spread(percent(full["miou"]), 1))
        lines.append(f"| [{name}](../results/{folder}/README.md) | {' | '.join(cells)} |")
    return "\n".join(lines)


def idd_lite() -> str:
    lines = ["| network | mIoU on val (%) | each seed |", "| --- | ---: | --- |"]
    for title, scores in rows_of("idd_lite/results.json").items():
        values = percent(scores["miou"])
        seeds = ", ".join(f"{value:.2f}" for value in values) if len(values) > 1 else ""
        lines.append(f"| {title} | {spread(values, 2)} | {seeds} |")
    return "\n".join(lines)


RARE = ("non-drivable", "living things", "vehicles")


def idd_lite_espnet_c() -> str:
    lines = [
        f"| ESPNet-C | mIoU on val (%) | each seed | {' | '.join(RARE)} | pixels right |",
        f"| --- | ---: | --- |{' ---: |' * (len(RARE) + 1)}",
    ]
    rows = json.loads((ROOT / "results/idd_lite/espnet_c.json").read_text(encoding="utf-8"))
    for row in rows:
        values = percent(row["scores"]["miou"])
        seeds = ", ".join(f"{value:.2f}" for value in values) if len(values) > 1 else ""
        cells = [spread(percent([iou[name] for iou in row["iou"]]), 1) for name in RARE]
        cells.append(spread(percent(row["scores"]["pixel_accuracy"]), 1))
        lines.append(f"| {row['title']} | {spread(values, 2)} | {seeds} | {' | '.join(cells)} |")
    return "\n".join(lines)


def filled(page: str) -> str:
    """The page's text with every block as the files have it now."""

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- results: {name} -->\n\n{globals()[name]()}\n\n<!-- end -->"

    return BLOCK.sub(block, page)


if __name__ == "__main__":
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if filled(text) != text:
            page.write_text(filled(text), encoding="utf-8")
            print(page)
