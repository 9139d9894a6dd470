"""The data of a recipe: what a spread of both splits holds, and whether it suits the recipe's sizes."""

from __future__ import annotations

from typing import Any

from densekd.config.schema import Config
from densekd.ops.names import first_few
from densekd.targets import CheckReport
from densekd.workflows.doctor.finding import Finding

AREA = "data"
MUCH_IGNORED = 0.5  # share of ignored pixels from which there is a warning
LONG_LIST = "`densekd data check` reads all"


def split_findings(split: str, report: CheckReport) -> list[Finding]:
    """What the samples tried of one split say: damage, classes, ignored pixels.

    Args:
        split: its name.
        report: of `sample_report`.
    """
    facts = report.to_dict()
    if report.bad:
        reasons = first_few([reason for _, reason in report.bad])
        what = f"{split}: {len(report.bad)} of {report.read} samples tried are bad: {reasons}"
        return [Finding("error", AREA, what, f"Mend or remove them; {LONG_LIST}")]
    findings = []
    ignored = facts.get("ignored_fraction", 0.0)
    if ignored > MUCH_IGNORED:
        what = f"{split}: {ignored:.0%} of the pixels are ignored, so few labels teach or score"
        advice = "Compare the label files' values with the class list"
        findings.append(Finding("warning", AREA, what, advice, "data.options"))
    absent = facts.get("absent", [])
    if absent:
        what = f"{split}: {first_few(absent)} never occur in the {report.labelled} samples tried"
        findings.append(Finding("note", AREA, what, LONG_LIST))
    sizes = sorted(report.sizes, key=lambda size: -report.sizes[size])
    classes = f"{len(report.classes)} classes, " if report.classes else ""
    share = f", {ignored:.1%} of the pixels ignored" if "ignored_fraction" in facts else ""
    unlabelled = f", {report.unlabelled} without label" if report.unlabelled else ""
    what = (
        f"{split}: {report.samples} images, {report.read} tried: {first_few(sizes, 3)}; {classes}"
        f"{report.labelled} labelled{unlabelled}{share}"
    )
    numbers = {k: v for k, v in facts.items() if isinstance(v, (int, float, str, dict))}
    findings.append(Finding("ok", AREA, what, numbers=numbers))
    return findings


def size_findings(config: Config, train: CheckReport, val: CheckReport) -> list[Finding]:
    """Whether crop and evaluation batch suit the sizes of the images tried."""
    findings = []
    data = config.data
    sizes = [_height_width(size) for size in train.sizes]
    largest_scale = max(data.scales or data.scale)
    if data.crop is not None and data.short_side is None and sizes:
        padded = [
            (h, w)
            for h, w in sizes
            if h * largest_scale < data.crop[0] and w * largest_scale < data.crop[1]
        ]
        if padded:
            height, width = padded[0]
            what = (
                f"data.crop {data.crop[0]}x{data.crop[1]} is larger than images of {height}x{width} at any scale: "
                "every crop has padding, which costs time and teaches nothing"
            )
            findings.append(Finding("warning", AREA, what, "Take a smaller crop", "data.crop"))
    if config.evaluate.batch_size > 1 and len(val.sizes) > 1:
        what = (
            f"evaluate.batch_size is {config.evaluate.batch_size} and validation images have {len(val.sizes)} sizes: "
            "they are padded to the largest of a batch, which the network sees and scores may depend on"
        )
        setting = "evaluate.batch_size"
        findings.append(Finding("note", AREA, what, "1 evaluates images as they are", setting))
    return findings


def spread_sizes(report: CheckReport) -> list[tuple[int, int]]:
    """(height, width): the most frequent, the smallest and the largest size of the samples tried, each once."""
    sizes: list[Any] = [_height_width(size) for size in report.sizes]
    if not sizes:
        return []
    frequent = _height_width(max(report.sizes, key=lambda size: report.sizes[size]))
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    return list(dict.fromkeys([frequent, by_area[0], by_area[-1]]))


def _height_width(size: str) -> tuple[int, int]:
    """Of ``"480x360"``, width first, as reports have it."""
    width, height = size.split("x")
    return int(height), int(width)
