"""Weights on disk: read without unpickling, with a digest that is compared, and written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from densekd.errors import WeightsError
from densekd.ops.digest import sealed
from densekd.ops.files import replacing
from densekd.ops.names import first_few

# The keys under which training codes put the network inside a checkpoint, tried in this order.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "student", "network", "net")
# The prefixes that data parallelism and torch.compile put before every key.
PREFIXES = ("module.", "_orig_mod.")
# The digest's entry in a safetensors file's metadata; its value begins so too, so that a flipped bit hides no digest.
DIGEST = "densekd-sha256"


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth or .pt file, or of a folder of ``save_pretrained``, on the CPU.

    The content decides how it is read, not the file's name. Pickled objects are refused (``weights_only``). A state
    dict inside of a checkpoint is unwrapped (`WRAPPERS`), and a prefix that every key carries (`PREFIXES`) is dropped.
    Files that densekd wrote carry a digest, which is compared; files of others have none.

    Raises:
        WeightsError: the file is missing, empty, cut short, damaged, not a weights file, needs unpickling, or holds
            tensors that are not plain (sparse, quantised, without values).
    """
    path = weights_file(path)
    try:
        state = strip_prefixes(unwrap(read_file(path), path))
        _check_plain(state, path)
        return state
    except WeightsError:
        raise
    # Whoever made the file chose its content: whatever it breaks, it is the file that cannot be used.
    except Exception as error:
        raise WeightsError(
            f"{path}: cannot be read as weights ({type(error).__name__}: {error}); save the network's state dict again"
        ) from error


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
    if not path.is_file():
        raise WeightsError(f"{path}: is no file but a pipe or a device; give a weights file")
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
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: damaged or cut short ({error}); copy it again") from error
    metadata = _all_metadata(path)
    digest = _take_digest(metadata)
    if digest is not None and digest != weights_digest(state, metadata):
        raise WeightsError(
            f"{path}: damaged: its content is not what was written (the digest differs); copy it again"
        )
    return state


def read_torch(path: Path) -> Mapping[str, object]:
    try:
        is_sealed = sealed(path)
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
    if content.get("sealed") is True and not is_sealed:  # as `engine.checkpoint` writes it
        raise WeightsError(f"{path}: damaged: its digest is lost; copy it again")
    return content


def unwrap(content: Mapping[str, object], path: Path) -> dict[str, Tensor]:
    seen: list[int] = []
    while id(content) not in seen:
        seen.append(id(content))
        inner = [content.get(key) for key in WRAPPERS]
        content = next((x for x in inner if isinstance(x, Mapping) and x), content)
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


def _check_plain(state: Mapping[str, Tensor], path: Path) -> None:
    for name, value in state.items():
        kind = ""
        if value.is_meta:
            kind = "has no values (it is on the device meta)"
        elif value.layout is not torch.strided or value.is_nested:
            kind = "is sparse or nested"
        elif value.is_quantized:
            kind = "is quantised"
        if kind:
            raise WeightsError(
                f"{path}: {name} {kind}; expected plain tensors: save the network's state dict in float32 or half "
                "precision"
            )


def save_weights(
    model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the bare network as safetensors; the file appears whole or not at all, and carries a digest of itself.

    Args:
        model: bare, so that its keys carry no wrapper's prefix.
        path: the file to write; its folder is made where it does not exist.
        metadata: strings to travel with the weights (input spec, class names as JSON).
    """
    # Cloned: safetensors refuses tensors that share memory.
    state = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    write_state(state, path, metadata or {})


def write_state(state: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]) -> None:
    """`save_weights` of tensors that are on the CPU, contiguous, and share no memory."""
    metadata = dict(metadata)
    metadata[DIGEST] = weights_digest(state, metadata)
    with replacing(path) as neighbour:
        save_file(dict(state), neighbour, metadata=metadata)
        _sort_header(neighbour)


def _sort_header(path: Path) -> None:
    """Put the metadata in order: safetensors writes them in one that changes from process to process."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def weights_digest(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Of all tensors by name, with their types and shapes, and of the metadata."""
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, value in sorted(state.items()):
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"{DIGEST}:{digest.hexdigest()}"


def _take_digest(metadata: dict[str, str]) -> str | None:
    """Take the digest out of a file's metadata; None in files without one, and no digest where its key is damaged."""
    found = [k for k, v in metadata.items() if k == DIGEST or v.startswith(f"{DIGEST}:")]
    if not found:
        return None
    digest = metadata.pop(found[0])
    return digest if found == [DIGEST] else ""


def read_metadata(path: str | Path) -> dict[str, str]:
    """What was given to `save_weights` beside the tensors; empty for files that carry none (.pth)."""
    metadata = _all_metadata(path)
    _take_digest(metadata)
    return metadata


def _all_metadata(path: str | Path) -> dict[str, str]:
    path = weights_file(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return {}
