"""`densekd.load`: a finished student from its run folder or its weights file, ready to be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from densekd.build.saved import build_saved
from densekd.data.files import PIL_MODES, read_image
from densekd.engine.folder import RunFolder
from densekd.errors import UserError, WeightsError
from densekd.models.taps import Taps, evaluating
from densekd.ops.tiling import Views
from densekd.tasks import Task
from densekd.types import Batch, DenseOutput, InputSpec
from densekd.workflows.share import check_config, download, looks_like_hub_id, push, save_folder

CORE_ML = ".mlpackage"  # how the names of Core ML's folders end


class LoadedModel(nn.Module):
    """A network with all that is needed to use it.

    Called, it takes images (N, C, H, W), RGB in [0, 1], and returns `DenseOutput`; `predict` takes one image as people
    have it and gives the answer at the image's size.

    Attributes:
        model: the bare network, as it is saved and exported.
        task: what it predicts; ``task.name`` is ``"segmentation"``, ``"detection"`` or ``"depth"``.
        classes: names in index order; empty for depth.
        palette: an RGB colour a class; None where the task has none.
        input_spec: what the bare network wants to see.
        about: what the file says of itself: version, note, options.
        path: the weights file.
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        input_spec: InputSpec,
        about: Mapping[str, Any],
        path: Path,
    ) -> None:
        super().__init__()
        self.tapped = Taps(network, {}, input_spec)
        self.task = task
        self.classes = list(task.classes)
        self.palette: list[tuple[int, int, int]] | None = getattr(task, "palette", None)
        self.input_spec = input_spec
        self.about = dict(about)
        self.path = path

    @property
    def model(self) -> nn.Module:
        return self.tapped.model

    def forward(self, images: Tensor) -> DenseOutput:
        """(N, C, H, W) RGB in [0, 1] -> prediction as the network gives it."""
        return self.tapped(images)

    @torch.no_grad()
    def predict(self, image: str | Path | Image.Image | np.ndarray) -> Any:
        """The decoded answer for one image, at its size, in NumPy arrays.

        Args:
            image: a file, a Pillow image, or (H, W, C) uint8 in RGB order.

        Returns:
            segmentation: (H, W) integers, the class of each pixel. Depth: (H, W) float32 metres. Detection:
            ``{"boxes": (m, 4) XYXY in pixels, "scores": (m,), "labels": (m,)}``, best first.
        """
        batch = self.batch(image)
        with evaluating(self):
            answer = self.task.predict(self.tapped, batch, Views())
        return as_arrays(answer[0])

    @property
    def device(self) -> torch.device:
        """Where the network is; the CPU for a network without parameters, such as an exported file."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def batch(self, image: str | Path | Image.Image | np.ndarray) -> Batch:
        """One image, as `predict` takes it, as a batch without labels on the network's device."""
        pixels = torch.from_numpy(self._pixels(image).transpose(2, 0, 1).copy())[None]
        height, width = pixels.shape[-2:]
        return Batch(
            images=pixels,
            targets=self.task.example_targets(1, (height, width), self.device),
            labelled=torch.zeros(1, dtype=torch.bool),
            inside=torch.ones(1, height, width, dtype=torch.bool),
            names=[""],
        ).to(self.device)

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> LoadedModel:
        """`densekd.load`, by the name that Hugging Face's libraries have for it."""
        return load(path, **options)

    def save_pretrained(self, folder: str | Path, *, license: str | None = None) -> Path:
        """Write a folder that `densekd.load` reads: config.json, model.safetensors and a model card, README.md.

        The card is made of the run that the network came from; it says so where there is none.

        Args:
            folder: is made; none of the three files may be there.
            license: of these weights, by its name on the hub (``"apache-2.0"``), for the card.
        """
        return save_folder(self.model, self.about, self.path, folder, license=license)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        license: str | None = None,
        message: str = "Upload a network trained with densekd",
    ) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face hub; ``densekd.load(repo_id)`` gives it back.

        Args:
            repo_id: ``"owner/name"``; the repository is made where there is none, and its files are replaced.
            private: make the repository a private one.
            token: of the hub; None takes the one of ``hf auth login`` or of HF_TOKEN.
            license: as in `save_pretrained`.
            message: of the commit.

        Returns:
            the repository's address.

        Raises:
            UserError: huggingface_hub is not installed (the extra ``hub``), or the hub refuses or cannot be reached.
        """
        return push(
            self.model,
            self.about,
            self.path,
            repo_id,
            private=private,
            token=token,
            license=license,
            message=message,
        )

    def _pixels(self, image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
        """(H, W, C) uint8."""
        channels = self.input_spec.channels
        if isinstance(image, (str, Path)):
            return read_image(image, channels)
        is_pillow = isinstance(image, Image.Image)
        pixels = np.asarray(image.convert(PIL_MODES[channels])) if is_pillow else image
        if isinstance(pixels, np.ndarray) and pixels.ndim == 2 and channels == 1:
            pixels = pixels[..., None]
        if (
            not isinstance(pixels, np.ndarray)
            or pixels.dtype != np.uint8
            or pixels.ndim != 3
            or pixels.shape[2] != channels
        ):
            given = (
                f"{pixels.dtype} {pixels.shape}"
                if isinstance(pixels, np.ndarray)
                else type(pixels).__name__
            )
            raise UserError(
                f"the image is {given}; expected a file, a Pillow image, or a NumPy array (H, W, {channels}) of uint8 "
                "in RGB order. For a batch of tensors in [0, 1] call the model itself"
            )
        return pixels

    def extra_repr(self) -> str:
        name = self.about.get("model", {}).get("name", type(self.model).__name__)
        return f"{name}, {self.task.name}, {len(self.classes)} classes, {self.path}"


def as_arrays(answer: Any) -> Any:
    """One image's answer: a map without its channel of one, or a dict of what was found."""
    if isinstance(answer, Tensor):
        return (answer[0] if answer.ndim == 3 and len(answer) == 1 else answer).cpu().numpy()
    if is_dataclass(answer):
        values = {f.name: getattr(answer, f.name) for f in fields(answer)}
        return {k: v.cpu().numpy() if isinstance(v, Tensor) else v for k, v in values.items()}
    return answer


def load(
    path: str | Path,
    *,
    best: bool = False,
    device: str = "cpu",
    trusted: bool = False,
    network: nn.Module | None = None,
) -> LoadedModel:
    """A trained network with its task, classes and input, in eval mode.

    Args:
        path: a run folder, a weights file that a run wrote, a folder that holds one such file (`save_pretrained`), or
            the id of a repository on the Hugging Face hub (``"owner/name"``, ``"owner/name@revision"``).
        best: of a run folder, the weights that scored best, not the last ones.
        device: where to put it: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.
        trusted: allow a file to name a network outside of densekd, whose code is then imported and run.
        network: the network itself, to be filled with the file's weights; for files of a network that was given as an
            object, which no name stands for.

    Raises:
        WeightsError: there is no such file, it is damaged, or it was not written by a run.
    """
    file = weights_file(Path(path), best=best)
    check_config(file)
    saved = build_saved(file, trusted=trusted, network=network)
    loaded = LoadedModel(saved.network, saved.task, saved.spec, saved.about, file)
    return loaded.to(device).eval()


def weights_file(path: Path, *, best: bool = False) -> Path:
    """The weights file that `path` is or holds; of an id on the hub, the one that is downloaded."""
    if not path.exists() and looks_like_hub_id(path):
        path = download(path.as_posix())
    if not path.is_dir():
        return path
    if path.suffix == CORE_ML:
        raise WeightsError(
            f"{path}: is a Core ML package, which runs on a Mac alone and is not read by densekd; give the run or the "
            "weights file that it was made of, or its .onnx file"
        )
    folder = RunFolder(path)
    if not folder.config.exists():
        found = sorted(path.glob("*.safetensors"))
        if len(found) == 1:
            return found[0]
        raise WeightsError(
            f"{path}: is neither a run folder (it has no config.yaml) nor holds one .safetensors file "
            f"({len(found)} found); give the folder of a run, RUN/checkpoints/student.safetensors, or a single file"
        )
    file = folder.best if best else folder.student
    if file.exists():
        return file
    if best:
        raise WeightsError(
            f"{path}: has no {file.name}: the run has not been scored yet; go on with it (--resume)"
        )
    other = "; load(path, best=True) gives the best weights so far" if folder.best.exists() else ""
    raise WeightsError(
        f"{path}: has no {file.name}: the run has not finished; go on with it (--resume){other}"
    )
