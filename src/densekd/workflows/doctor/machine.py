"""The machine and the packages: versions that fit, devices, cores, memory, disk, and what a number format costs.

Nothing here imports torchvision before it has looked whether it loads.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from densekd.config.schema import Config
from densekd.engine.launch import available_cores
from densekd.errors import first_line
from densekd.ops.files import cache_folder
from densekd.ops.names import bytes_text
from densekd.profiling.machine import free_memory, reduced_precision_ratio
from densekd.workflows.doctor.finding import Finding

AREA = "environment"
SLOWER = 1.5  # a reduced precision that takes so many times float32's time is emulated
BUSY = 1.5  # programs that want a core, over the cores, from which several threads of one are slower than one
LITTLE_MEMORY, LITTLE_DISK = 2 * 2**30, 5 * 10**9
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def machine_findings(device: torch.device) -> list[Finding]:
    """The environment, without a recipe; takes about a second."""
    return [
        *version_findings(torchvision_facts()),
        *extra_findings(extras()),
        device_finding(),
        *core_findings(),
        memory_finding(free_memory()),
        disk_finding(cache_folder("").parent, "the cache"),
        precision_finding("bf16", device),
    ]


# --- packages -------------------------------------------------------------------------------------------------------


def torchvision_facts() -> dict[str, Any]:
    """Versions of torch and torchvision, what torchvision was built for, and why its operators do not load, if so."""
    facts: dict[str, Any] = {"torch": torch.__version__, "torch_cuda": torch.version.cuda}
    try:
        facts["torchvision"] = metadata.version("torchvision")
        needs = (re.match(r"torch\W*(==|>=)\s*([\d.]+)", r) for r in _needs("torchvision"))
        facts["wants"] = next(((found[1], found[2]) for found in needs if found), None)
    except metadata.PackageNotFoundError:
        return {**facts, "torchvision": None}
    try:
        import torchvision

        facts["torchvision_cuda"] = _cuda_version(torchvision.version.cuda)
        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
        facts["fault"] = None
    except (
        Exception
    ) as error:  # a broken binary raises almost anything, at import or at the first call
        facts["fault"] = first_line(error)
    return facts


def version_findings(facts: dict[str, Any]) -> list[Finding]:
    """Whether torch and torchvision are a pair; with Python and timm.

    Args:
        facts: of `torchvision_facts`.
    """
    advice = (
        "Install both in one command and from one index, for example: pip install --force-reinstall torch torchvision "
        "--index-url https://download.pytorch.org/whl/cpu"
    )
    python = sys.version.split()[0]
    own = f"torch {facts['torch']} ({_built_for(facts['torch_cuda'])})"
    if facts["torchvision"] is None:
        what = f"Python {python}, {own}, and torchvision is not installed"
        return [Finding("error", AREA, what, advice)]
    pair = f"{own} and torchvision {facts['torchvision']}"
    public = facts["torch"].partition("+")[0]
    if facts["fault"]:
        what = f"{pair} do not fit: torchvision's operators do not load ({facts['fault']})"
        return [Finding("error", AREA, what, advice)]
    if facts["wants"] and not _fits(public, *facts["wants"]):
        what = f"{pair} are no pair: this torchvision wants torch {''.join(facts['wants'])}"
        return [Finding("error", AREA, what, advice)]
    if facts.get("torchvision_cuda") != facts["torch_cuda"]:
        what = (
            f"{pair} ({_built_for(facts.get('torchvision_cuda'))}) are built for different devices"
        )
        return [Finding("warning", AREA, what, advice)]
    try:
        timm = f"timm {metadata.version('timm')}"
    except metadata.PackageNotFoundError:
        return [Finding("error", AREA, "timm is not installed", "pip install timm")]
    return [Finding("ok", AREA, f"Python {python}; {pair} are a pair; {timm}")]


def _needs(package: str) -> list[str]:
    return metadata.requires(package) or []


def _fits(version: str, sign: str, wanted: str) -> bool:
    """Whether ``"2.8.0"`` is ``"=="`` or ``">="`` the wanted one; a suffix such as rc1 is left out."""
    given, least = (
        [int(number) for number in re.findall(r"\d+", text)[:3]] for text in (version, wanted)
    )
    return given == least if sign == "==" else given >= least


def _cuda_version(text: Any) -> str | None:
    """torchvision writes 12.8 as 12.8 or as 12080."""
    if text is None or "." in str(text):
        return text
    return f"{int(text) // 1000}.{int(text) % 1000 // 10}"


def _built_for(cuda: str | None) -> str:
    return f"CUDA {cuda}" if cuda else "CPU"


def extras() -> dict[str, list[str]]:
    """Extra of this package -> its packages that are not installed; empty where the package itself is not."""
    try:
        requirements = _needs("densekd")
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, list[str]] = {}
    for requirement in requirements:
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        name = re.match(r"[\w.-]+", requirement)
        if extra is None or name is None or extra[1] == "dev":
            continue
        missing = found.setdefault(extra[1], [])
        try:
            metadata.version(name[0])
        except metadata.PackageNotFoundError:
            missing.append(name[0])
    return found


def extra_findings(missing: dict[str, list[str]]) -> list[Finding]:
    """Which extras are there, and the line that brings each of the others.

    Args:
        missing: of `extras`.
    """
    present = [name for name, packages in missing.items() if not packages]
    findings = []
    if present:
        findings.append(Finding("ok", AREA, f"extras present: {', '.join(present)}"))
    for name, packages in missing.items():
        if packages:
            what = f"the extra {name} is not installed ({', '.join(packages)})"
            advice = f"Where it is needed: pip install 'densekd[{name}]'"
            findings.append(Finding("note", AREA, what, advice))
    return findings


# --- the machine ----------------------------------------------------------------------------------------------------


def device_finding() -> Finding:
    """The devices that this PyTorch can use."""
    if torch.cuda.is_available():
        names = []
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            names.append(f"cuda:{index} {about.name}, {bytes_text(about.total_memory)}")
        return Finding("ok", AREA, f"devices: cpu; {'; '.join(names)}")
    if torch.backends.mps.is_available():
        return Finding("ok", AREA, "devices: cpu; mps (Apple GPU)")
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists():
        built = _built_for(torch.version.cuda)
        what = (
            f"this machine has an NVIDIA driver, and this PyTorch (built for {built}) sees no GPU"
        )
        advice = (
            "Install a CUDA build of torch and torchvision (see pytorch.org), or a newer driver"
        )
        return Finding("warning", AREA, what, advice)
    return Finding("ok", AREA, "devices: cpu alone; large teachers take long on it")


def core_findings() -> list[Finding]:
    """Cores of this process and the threads that PyTorch takes."""
    cores, threads = available_cores(), torch.get_num_threads()
    if threads > cores:
        return [too_many_threads(threads, cores)]
    busy = busy_finding(threads)
    if busy is not None:
        return [busy]
    return [Finding("ok", AREA, f"cores for this process: {cores}; threads for compute: {threads}")]


def too_many_threads(threads: int, cores: int) -> Finding:
    return Finding(
        "warning",
        AREA,
        f"{threads} threads for compute on {cores} core{'s' if cores > 1 else ''}: they wait for each other, and a "
        "step takes longer",
        f"Set OMP_NUM_THREADS={cores}, or leave it out",
    )


def busy_finding(threads: int, load: float | None = None) -> Finding | None:
    """A note where other programs keep all cores busy, beside which several threads wait for each other; else None.

    Args:
        load: programs that want a core, the mean of a minute; None: as the system says.
    """
    cores = os.cpu_count() or 1
    if load is None:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # Windows has none
    if threads < 2 or load < BUSY * cores:
        return None
    what = (
        f"other programs keep this machine's cores busy (load {load:.1f} on {cores} cores), and {threads} threads for "
        "compute wait for each other at every operation: a network of many small ones can take ten times as long"
    )
    return Finding("note", AREA, what, "Beside them OMP_NUM_THREADS=1 is faster")


def memory_finding(free: int | None) -> Finding:
    """Args: free: bytes; None where unknown."""
    if free is None:
        return Finding("note", AREA, "how much memory is free cannot be told here")
    if free < LITTLE_MEMORY:
        what = f"only {bytes_text(free)} of memory are free"
        return Finding("warning", AREA, what, "Close other programs, or train with smaller batches")
    return Finding("ok", AREA, f"memory free: {bytes_text(free)}", numbers={"free_bytes": free})


def disk_finding(folder: Path, purpose: str, needed: int = 0) -> Finding:
    """Whether a folder (or the first one above it that exists) can be written, and has room.

    Args:
        needed: bytes that a run will write there.
    """
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    wanted = f", {bytes_text(needed)} are needed" if needed else ""
    if not place.is_dir() or not os.access(place, os.W_OK):
        what = f"{purpose} is at {folder}, and {place} cannot be written"
        advice = "Give another folder ($DENSEKD_CACHE moves the caches, --out the runs)"
        return Finding("error" if needed else "warning", AREA, what, advice)
    free = shutil.disk_usage(place).free
    numbers = {"free_bytes": free, "needed_bytes": needed}
    what = f"{purpose} is at {folder}: {bytes_text(free)} free{wanted}"
    if free < needed:
        return Finding("error", AREA, what, "Make room, or give another folder", numbers=numbers)
    if free < LITTLE_DISK:
        return Finding("warning", AREA, what, "Make room", numbers=numbers)
    return Finding("ok", AREA, what, numbers=numbers)


# --- what a setting costs here --------------------------------------------------------------------------------------


def precision_finding(
    name: str,
    device: torch.device,
    setting: str = "",
    measure: Callable[[torch.dtype, torch.device], float] = reduced_precision_ratio,
) -> Finding:
    """Whether ``"bf16"`` or ``"fp16"`` is real on this device or emulated, by the time of a convolution.

    Args:
        setting: the one that asks for it; without one an emulation is a note.
    """
    try:
        ratio = measure(HALF[name], device)
    except RuntimeError as error:
        what = f"{name} does not work on {device.type}: {error}"
        return Finding("error" if setting else "note", AREA, what, _FLOAT32, setting)
    numbers = {"ratio": ratio}
    if ratio >= SLOWER:
        what = (
            f"{name} is emulated on this {device.type}: a convolution takes {ratio:.3g} times as long as in float32 "
            "(measured)"
        )
        level = "warning" if setting else "note"
        return Finding(level, AREA, what, _FLOAT32, setting, numbers=numbers)
    what = f"{name} is real on this {device.type}: a convolution takes {ratio:.2f} of the time in float32"
    return Finding("ok", AREA, what, setting=setting, numbers=numbers)


_FLOAT32 = "Train in float32 here (train.amp none, teacher.precision same)"


def setting_findings(
    config: Config,
    device: torch.device,
    measure: Callable[[torch.dtype, torch.device], float] = reduced_precision_ratio,
) -> list[Finding]:
    """What the recipe asks of the machine and will not get, where that costs nothing to know; no ok among them.

    A run says these in its first lines.
    """
    found: list[Finding] = []
    cores, workers = available_cores(), config.data.workers
    if workers > cores:
        used = "1 loader process is" if cores == 1 else f"{cores} loader processes are"
        what = f"data.workers is {workers}; {used} used, as many as there are cores"
        found.append(Finding("note", AREA, what, setting="data.workers"))
    threads = torch.get_num_threads()
    busy = busy_finding(threads)
    if device.type == "cpu" and threads > cores:
        found.append(too_many_threads(threads, cores))
    elif device.type == "cpu" and busy is not None:
        found.append(busy)
    teachers = config.every_teacher
    asked: dict[str, str] = {"train.amp": config.train.amp}
    if config.distill.teacher_cache is None:
        asked |= {f"{section}.precision": t.precision for section, t in teachers.items()}
    measured: dict[str, Finding] = {}
    for setting, name in asked.items():
        if device.type != "cpu" or name not in HALF or name in measured:
            continue
        measured[name] = precision_finding(name, device, setting, measure)
        if measured[name].level != "ok":
            found.append(measured[name])
    for setting, wanted in (
        ("train.compile", config.train.compile),
        *((f"{section}.compile", teacher.compile) for section, teacher in teachers.items()),
    ):
        reason = no_compiler(device) if wanted else ""
        if reason:
            what = f"{setting} is set, and {reason}: the first step will fail"
            found.append(
                Finding("error", AREA, what, f"Leave {setting} out, or install it", setting)
            )
    return found


def no_compiler(device: torch.device) -> str:
    """Why torch.compile cannot work here; empty where it can."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    names = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    if device.type != "cuda" and not any(name and shutil.which(name) for name in names):
        return "there is no C++ compiler (g++ or clang++)"
    return ""
