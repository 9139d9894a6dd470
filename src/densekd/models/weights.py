"""Weights on disk: read without unpickling, checked against the network before anything is loaded."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from densekd.errors import WeightsError
from densekd.ops.files import replacing
from densekd.ops.names import first_few

# The keys under which training codes put the network inside a checkpoint, tried in this order.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "student", "network", "net")
# The prefixes that data parallelism and torch.compile put before every key.
PREFIXES = ("module.", "_orig_mod.")
COUNTER = "num_batches_tracked"


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth or .pt file, or of a folder of ``save_pretrained``, on the CPU.

    The content decides how it is read, not the file's name. Pickled objects are refused (``weights_only``). A state
    dict inside of a checkpoint is unwrapped (`WRAPPERS`), and a prefix that every key carries (`PREFIXES`) is dropped.

    Raises:
        WeightsError: the file is missing, empty, cut short, not a weights file, or needs unpickling.
    """
    path = weights_file(path)
    return strip_prefixes(unwrap(read_file(path), path))


def weights_file(path: str | Path) -> Path:
    """The file itself, or the one in a folder that ``save_pretrained`` wrote.

    Raises:
        WeightsError: a folder without such a file, or with several (a network in parts).
    """
    path = Path(path)
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
    if len(found) != 1:
        raise WeightsError(
            f"{path}: is a folder with {len(found)} weights files (.safetensors or pytorch_model.bin); expected one: "
            "give the weights file in it"
        )
    return found[0]


def read_file(path: Path) -> Mapping[str, object]:
    if not path.exists():
        raise WeightsError(f"{path}: no such weights file")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not start:
        raise WeightsError(f"{path}: is empty; download or copy it again")
    # Checked first: a safetensors file starts with a length, whose bytes may be any.
    if start[8:9] == b"{":
        return read_safetensors(path)
    if start.lstrip().startswith(b"<"):
        raise WeightsError(
            f"{path}: is a web page, not a weights file; the download needs another link or a login"
        )
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(
            f"{path}: is a Git LFS pointer; fetch the file itself with `git lfs pull`"
        )
    if start.startswith((b"PK", b"\x80")):  # zip archive, or the bare pickle of torch < 1.6
        return read_torch(path)
    raise WeightsError(f"{path}: neither a safetensors nor a PyTorch file")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: damaged or cut short ({error}); copy it again") from error


def read_torch(path: Path) -> Mapping[str, object]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: damaged, or holds Python objects beside tensors, which could run code and are not read. "
            "In the code that wrote it, save `model.state_dict()` instead."
        ) from error
    # A damaged archive surfaces as almost any error of zip and pickle readers.
    except Exception as error:
        raise WeightsError(f"{path}: damaged or cut short ({error}); copy it again") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds a {type(content).__name__}; expected a dict of tensors")
    return content


def unwrap(content: Mapping[str, object], path: Path) -> dict[str, Tensor]:
    for key in WRAPPERS:
        inner = content.get(key)
        if isinstance(inner, Mapping) and inner:
            return unwrap(inner, path)
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors; its keys are {first_few(list(content))}")
    return tensors


def strip_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = dict(state)
    found = True
    while found:
        found = False
        for prefix in PREFIXES:
            if all(key.startswith(prefix) for key in state):
                state = {key[len(prefix) :]: value for key, value in state.items()}
                found = True
    return state


def load_weights(
    model: nn.Module,
    source: str | Path | Mapping[str, Tensor],
    *,
    strict: bool = True,
    prefix: str = "",
    ignore: Sequence[str] = (),
) -> list[str]:
    """Load a file or a state dict into `model`, checking every key and shape before touching it.

    A model may declare ``rename_keys`` (static; state dict -> state dict: the key map of published files) and
    ``optional_prefixes`` (keys that a file may hold and this model does not need).

    Args:
        model: the bare network.
        source: a file, or a state dict.
        strict: False loads the tensors that fit and leaves the rest as it is.
        prefix: dropped from the keys that begin with it, as ``"net."`` of a Lightning checkpoint.
        ignore: patterns (``"head.aux.*"``) of keys that the file has and this model does not; the keys are matched
            without the prefix.

    Returns:
        The model's keys that were left as they were (empty when strict).

    Raises:
        WeightsError: the weights do not fit; the message names the keys, and the cause where it is known. Without
            `strict` it is raised where nothing fits.
    """
    if isinstance(source, Mapping):
        name, state = "the given weights", strip_prefixes(source)
    else:
        name, state = str(source), read_weights(source)
    state = prepare(model, without(state, prefix, ignore, name))
    expected = model.state_dict()
    fits = compare(
        expected, state, name, strict=strict, num_classes=getattr(model, "num_classes", None)
    )
    # The norms' counters stay where a file has none, since evaluation does not read them.
    counters = {k: v for k, v in expected.items() if k.endswith(COUNTER)}
    left = [key for key in expected if key not in fits and key not in counters]
    model.load_state_dict({**counters, **fits}, strict=not left)
    return left


def without(
    state: Mapping[str, Tensor], prefix: str, ignore: Sequence[str], name: str
) -> dict[str, Tensor]:
    """A state dict with `prefix` dropped from its keys, and without the keys that match a pattern of `ignore`.

    Raises:
        WeightsError: two keys become one.
    """
    bare: dict[str, Tensor] = {}
    for key, value in state.items():
        short = key.removeprefix(prefix)
        if any(fnmatchcase(short, pattern) for pattern in ignore):
            continue
        if short in bare:
            raise WeightsError(
                f"{name}: holds both {short!r} and {prefix + short!r}, which are one key without the prefix "
                f"{prefix!r}; leave the prefix out, or save one of the two networks alone"
            )
        bare[short] = value
    return bare


def load_part(model: nn.Module, source: str | Path, *, without: Iterable[str]) -> None:
    """Load everything of `model` but the keys under the prefixes `without`; the file may hold more than that.

    Raises:
        WeightsError: a key of that part is missing or has another shape.
    """
    without = tuple(without)
    state = prepare(model, read_weights(source))
    expected = {k: v for k, v in model.state_dict().items() if not k.startswith(without)}
    state = {k: v for k, v in state.items() if k in expected}
    fits = compare(expected, state, str(source), strict=True, num_classes=None)
    model.load_state_dict(fits, strict=False)


def prepare(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Apply the model's own key map, and drop the keys that the model declares optional."""
    own = set(model.state_dict())
    # The trainer's `last` holds the student inside of its wrapper.
    inner = {key.removeprefix("model."): value for key, value in state.items()}
    if not own & set(state) and own & set(inner):
        state = inner
    rename = getattr(model, "rename_keys", None)
    if rename is not None:
        state = rename(state)
    optional = tuple(getattr(model, "optional_prefixes", ()))
    return {k: v for k, v in state.items() if k in own or not k.startswith(optional)}


def rename_prefixes(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Replace the first of the prefixes `names` (old -> new) that a key starts with."""

    def rename(key: str) -> str:
        for old, new in names.items():
            if key.startswith(old):
                return new + key.removeprefix(old)
        return key

    return {rename(key): value for key, value in state.items()}


def common_prefix(wanted: Iterable[str], given: Iterable[str]) -> str | None:
    """What stands before the network's keys in a file of its weights, if that is the difference."""
    given = set(given)
    first = next(iter(sorted(wanted)), None)
    ends = [key for key in given if first and key.endswith("." + first)]
    for key in sorted(ends, key=len):
        prefix = key.removesuffix(first or "")
        if sum(prefix + name in given for name in wanted) > 0.9 * len(set(wanted)):
            return prefix
    return None


def compare(
    expected: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    name: str,
    *,
    strict: bool,
    num_classes: int | None,
) -> dict[str, Tensor]:
    """The tensors that fit; with `strict` it raises WeightsError where not all do."""
    wanted = {k for k in expected if not k.endswith(COUNTER)}
    given = {k for k in state if not k.endswith(COUNTER)}
    shared = wanted & given
    if len(shared) < 0.1 * len(wanted):
        prefix = common_prefix(wanted, given)
        hint = (
            f" The file's keys begin with {prefix!r}: drop it with prefix={prefix!r} (weights_prefix in a recipe)."
            if prefix
            else ""
        )
        raise WeightsError(
            f"{name}: these look like weights of another network: {len(shared)} of {len(wanted)} keys match. "
            f"The file has {first_few(sorted(given))}; the network has {first_few(sorted(wanted))}.{hint}"
        )
    wrong = [k for k in expected if k in shared and state[k].shape != expected[k].shape]
    missing = [k for k in expected if k in wanted - given]
    unexpected = [k for k in state if k in given - wanted]
    if strict and (wrong or missing or unexpected):
        parts = []
        if wrong:
            classes = class_counts(expected, state, wrong, num_classes)
            if classes is not None:
                parts.append(f"the checkpoint has {classes} classes, the network {num_classes}")
            shapes = (
                f"{k} is {tuple(state[k].shape)}, expected {tuple(expected[k].shape)}"
                for k in wrong
            )
            parts.append(f"other shapes ({len(wrong)}): {first_few(list(shapes))}")
        if missing:
            parts.append(f"missing ({len(missing)}): {first_few(missing)}")
        if unexpected:
            parts.append(
                f"unexpected ({len(unexpected)}): {first_few(unexpected)}"
                "; keys that are not needed can be named in ignore= (weights_ignore in a recipe)"
            )
        raise WeightsError(f"{name}: does not fit the network. " + ". ".join(parts) + ".")
    bad = set(wrong)
    return {k: v for k, v in state.items() if k in expected and k not in bad}


def class_counts(
    expected: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    wrong: Iterable[str],
    num_classes: int | None,
) -> int | None:
    """The checkpoint's class count, if it explains the wrong shapes."""
    found: Counter[int] = Counter()
    for key in wrong:
        if state[key].ndim == expected[key].ndim:
            for given, wanted in zip(state[key].shape, expected[key].shape, strict=True):
                if wanted == num_classes and given != wanted:
                    found[given] += 1
    return found.most_common(1)[0][0] if found else None


def save_weights(
    model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the bare network as safetensors; the file appears whole or not at all.

    Args:
        model: bare, so that its keys carry no wrapper's prefix.
        path: the file to write; its folder is made where it does not exist.
        metadata: strings to travel with the weights (input spec, class names as JSON).
    """
    # Cloned: safetensors refuses tensors that share memory.
    state = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    with replacing(path) as neighbour:
        save_file(state, neighbour, metadata=dict(metadata or {}))


def read_metadata(path: str | Path) -> dict[str, str]:
    """What `save_weights` put beside the tensors; empty for files that carry none (.pth)."""
    path = weights_file(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}
