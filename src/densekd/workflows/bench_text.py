"""What `bench` measured, for people: a table, and advice where the numbers call for some."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from densekd.config.schema import Config
from densekd.engine.launch import available_cores
from densekd.profiling.step_time import TEACHER

# The two parts of the loop beside the step.
WAIT, MOVE = "data wait", "to the device"
# Shares and ratios from which advice is given.
LONG_WAIT, LARGE_TEACHER, FLOOR_AIM, SHARED_CORES = 0.1, 0.3, 1.05, 1.1


def rows(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Row's name -> spread of its seconds, in the order of a step."""
    loop = {name: result["loop"][name] for name in (WAIT, MOVE) if result["loop"][name]}
    return {**loop, **result["parts"]}


def shares(result: dict[str, Any]) -> dict[str, float]:
    """Row's name -> its share of all rows' medians."""
    medians = {name: row["median"] for name, row in rows(result).items()}
    return {name: value / sum(medians.values()) for name, value in medians.items()}


def advice(config: Config, result: dict[str, Any]) -> list[str]:
    """What the numbers say should be tried; nothing where they say nothing."""
    share, lines = shares(result), []
    wait = share.get(WAIT, 0.0)
    if wait >= LONG_WAIT:
        cores, workers = available_cores(), config.data.workers
        remedies = []
        if workers < cores - 1:
            remedies.append(f"raise data.workers (now {workers}; {cores} cores here)")
        if config.data.cache is None:
            remedies.append("set data.cache (disk, ram or device)")
        remedy = " or ".join(remedies) or "reading and augmenting take all cores"
        lines.append(f"{WAIT} is {wait:.0%} of the step: {remedy}")
    found = result["ratio"]
    if found is not None and found["interval"][0] > FLOOR_AIM:
        terms = {k: v["median"] for k, v in result["parts"].items() if k.startswith("distill/")}
        dearest = max(terms, key=lambda name: terms[name])
        lines.append(
            f"the step takes {found['median'] - 1:.0%} more than its floor; the dearest term is {dearest} "
            f"({_ms(terms[dearest])} ms forward)"
        )
    beside, at_hand = result["loop"]["step"], result["step"]
    if beside["interval"][0] > SHARED_CORES * at_hand["interval"][1]:
        lines.append(
            f"in the loop a step takes {beside['median'] / at_hand['median']:.1f} times as long as on a batch at hand: "
            "loaders or other programs share its cores"
        )
    teacher = config.teacher
    in_float32 = (
        teacher is not None
        and config.train.amp == "none"
        and teacher.precision in ("same", "fp32")
        and result["device"].startswith("cuda")
    )
    if share.get(TEACHER, 0.0) >= LARGE_TEACHER and in_float32:
        lines.append(
            f"the teacher is {share[TEACHER]:.0%} of the step, in float32: try teacher.precision bf16"
        )
    return lines


def as_text(result: dict[str, Any]) -> str:
    """The table and what stands beside it."""
    pair = result["student"] + (f" from {result['teacher']}" if result["teacher"] else " alone")
    batch = "×".join(map(str, result["batch"]))
    if result["accumulate"] > 1:
        batch = f"{result['accumulate']} × {batch}"
    share = shares(result)
    cells = [
        [name, _ms(row["median"]), _interval(row, _ms), f"{share[name]:.1%}"]
        for name, row in rows(result).items()
    ]
    whole = result["loop"]["seconds"]
    cells.append(["one step in the loop", _ms(whole["median"]), _interval(whole, _ms), ""])
    speed = result["images_per_s"]
    lines = [
        f"{pair}, {batch}, {result['classes']} classes, {result['device']}, threads "
        f"{result['environment']['threads']}; medians of {result['steps']} [95 % interval]",
        "",
        *table(["part", "ms", "95 % interval", "share"], cells),
        "",
        f"{speed['median']:.2f} images/s {_interval(speed, '{:.2f}'.format)}; {_memory(result)}",
    ]
    if result["ratio"] is not None:
        floor = " + ".join(f"{k} {_ms(v['median'])}" for k, v in result["floor"].items())
        lines.append(
            f"over its floor: {result['ratio']['median']:.3f} {_interval(result['ratio'], '{:.3f}'.format)} = "
            f"step {_ms(result['step']['median'])} / ({floor}) ms"
        )
    lines += [f"remark: {remark}" for remark in result["remarks"]]
    lines += [f"advice: {line}" for line in result["advice"]]
    return "\n".join(lines)


def _memory(result: dict[str, Any]) -> str:
    peak = result["peak_bytes"]
    if peak is None:
        return "peak memory unknown on this system"
    if "device_bytes" in result:
        return (
            f"{_gib(peak)} of {_gib(result['device_bytes'])} GiB of the device's memory at the peak"
        )
    return f"{_gib(peak)} GiB of memory at the peak, for the whole process without its loaders"


def table(head: list[str], cells: list[list[str]]) -> list[str]:
    """Markdown whose columns line up in a terminal too: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]

    def line(row: list[str]) -> str:
        aligned = [row[0].ljust(widths[0])]
        aligned += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return f"| {' | '.join(aligned)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [line(head), line(rule), *map(line, cells)]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def _interval(row: dict[str, Any], form: Callable[[float], str]) -> str:
    low, high = row["interval"]
    return f"[{form(low)}, {form(high)}]"
