"""A small set and its augmentation on the device: no workers, nothing to wait for, nothing to copy but numbers.

Everything random is drawn on the host by `Augment.draw`, from the same generators as in `TrainLoader`: order, windows,
scales, mirrors and factors are the same. What is done with it here follows OpenCV's definitions: targets come out
equal, images within one grey level, and within three after colour jitter, which takes roundings further.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from densekd.data.augment import Augment, Choices
from densekd.data.base import DenseSet, Sample
from densekd.data.loader import check_loader, empty_target, fitting
from densekd.data.stream import Positions, Stream, check_stream, nothing_readable
from densekd.errors import DataError, UserError
from densekd.targets import kind_of_set
from densekd.types import Batch, SampleKey


class DeviceLoader:
    """The stream of `TrainLoader`, made on the device, for kinds of truth with a value at every pixel.

    Args:
        reader: read whole, once, by the constructor; a `CachedSet` makes that quick.
        device: where the set is kept and augmented.
        transform: an `Augment`, whose `cat_max_ratio` keeps the class maps on the host too.
        batch_size, seed, rank, world_size, start_step, augment_epochs, on_bad_file, skipped: as in `TrainLoader`.

    Attributes:
        skipped: name -> reason of the files skipped so far.

    Raises:
        UserError: a kind of truth without a value at every pixel (boxes); images that do not fit into
            the device's memory.
    """

    def __init__(
        self,
        reader: DenseSet,
        *,
        device: torch.device | str,
        batch_size: int,
        seed: int = 0,
        transform: Augment | None = None,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        augment_epochs: int | None = None,
        on_bad_file: str = "stop",
        skipped: dict[str, str] | None = None,
    ) -> None:
        check_loader(reader, batch_size, rank, world_size, 0, on_bad_file)
        check_stream(seed, start_step, augment_epochs)
        fitted = fitting(transform, reader)
        if not isinstance(fitted, Augment):
            raise UserError(
                f"`DeviceLoader` augments by itself; {type(fitted).__name__} is a transform for the host. Take "
                "`TrainLoader`"
            )
        check_device(kind_of_set(reader))
        self.reader = reader
        self.batch_size = batch_size
        self.start_step = start_step
        self.skipped = {} if skipped is None else skipped
        self._device = torch.device(device)
        self._transform = fitted
        self._skip_bad = on_bad_file == "skip"
        self._stream = Stream(seed, len(reader), augment_epochs)
        self._positions = Positions(len(reader), batch_size, rank, world_size, start_step)
        self._kind = kind_of_set(reader)
        self._stride = world_size * batch_size
        self._load()

    def epoch(self, step: int) -> float:
        """How often the whole set has been seen when `step` begins."""
        return step * self._stride / len(self.reader)

    def __iter__(self) -> Iterator[Batch]:
        for positions in self._positions:
            yield self._batch(positions)

    def _load(self) -> None:
        """Every readable sample as one table of pixels, sample after sample, row after row."""
        images, truth, targets = [], [], []
        self._errors: dict[int, DataError] = {}
        self._sizes: list[tuple[int, int]] = []
        self._labelled: list[bool] = []
        self._extras: list[Any] = []  # what there is of each target beside its pixels
        self._first = [0]
        for index in range(len(self.reader)):
            try:
                sample = self.reader.read(index)
            except DataError as error:
                self._errors[index] = error
                channels = self.reader.channels
                sample = Sample(np.empty((0, 0, channels), np.uint8), None, self.reader.name(index))
            size = sample.image.shape[:2]
            target = sample.target
            self._labelled.append(target is not None)
            if target is None:
                target = empty_target(self.reader, size)
            (pixels,), extra = self._kind.pack(target)
            self._extras.append(extra)
            self._sizes.append(size)
            self._first.append(self._first[-1] + size[0] * size[1])
            images.append(sample.image)
            truth.append(pixels)
            targets.append(target)
        needed = self._transform.cat_max_ratio is not None
        self._host_targets = targets if needed else [None] * len(targets)
        self._pixels, self._truth = self._to_device(images), self._to_device(truth)

    def _to_device(self, arrays: list[np.ndarray]) -> Tensor:
        """(H, W, ...) arrays one below the other: (pixels, ...)."""
        rest, dtype = arrays[0].shape[2:], np.result_type(*arrays)
        size = self._first[-1] * int(np.prod(rest)) * dtype.itemsize
        if self._device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self._device)
            if size > free:
                raise UserError(
                    f"`DeviceLoader` needs {size / 1e9:.2f} GB on {self._device}, which has {free / 1e9:.2f} GB "
                    "free. Take `TrainLoader`"
                )
        whole = torch.empty(
            (self._first[-1], *rest),
            dtype=torch.from_numpy(np.empty(0, dtype)).dtype,
            device=self._device,
        )
        for first, array in zip(self._first, arrays, strict=False):
            flat = torch.from_numpy(np.array(array, dtype=dtype, order="C").reshape(-1, *rest))
            whole[first : first + len(flat)] = flat
        return whole

    def _batch(self, positions: list[tuple[int, int]]) -> Batch:
        drawn = [self._draw(position) for position in positions]
        indices = [index for index, _, _ in drawn]
        choices = [chosen for _, chosen, _ in drawn]
        crop = self._transform.crop
        height = max(chosen.size[0] for chosen in choices) if crop is None else crop[0]
        width = max(chosen.size[1] for chosen in choices) if crop is None else crop[1]
        rows, columns, weights = _grids(
            [(self._first[i], self._sizes[i][1]) for i in indices], choices, (height, width)
        )
        rows, columns = (
            torch.from_numpy(x).to(self._device, non_blocking=True) for x in (rows, columns)
        )
        weights = torch.from_numpy(weights).to(self._device, non_blocking=True)
        inside = torch.from_numpy(_insides(choices, height, width)).to(
            self._device, non_blocking=True
        )
        seen = inside[:, 0, :height, None] & inside[:, 1, None, :width]
        images = self._images(rows, columns, weights, seen, choices)
        truth = self._truth[rows[:, 2, :, None] + columns[:, 2, None]]
        extras = [self._extras[i] for i in indices]
        targets = self._kind.from_pixels(truth, seen, extras, choices, self.reader.ignore_index)
        return Batch(
            images,
            targets,
            torch.tensor([self._labelled[i] for i in indices], device=self._device),
            seen,
            [self.reader.name(i) for i in indices],
            [key for _, _, key in drawn],
        )

    def _draw(self, position: tuple[int, int]) -> tuple[int, Choices, SampleKey | None]:
        entry = self._stream.at(position)
        for index in entry.candidates():
            if index not in self._errors:
                target = self._host_targets[index]
                chosen = self._transform.draw(self._sizes[index], target, entry.rng)
                return index, chosen, entry.key(index)
            if not self._skip_bad:
                raise self._errors[index]
            self.skipped[self.reader.name(index)] = str(self._errors[index])
        raise nothing_readable(self.skipped)

    def _images(
        self,
        rows: Tensor,
        columns: Tensor,
        weights: Tensor,
        inside: Tensor,
        choices: list[Choices],
    ) -> Tensor:
        """(N, C, H, W) uint8: bilinear, then colour, then padding."""

        def corner(row: int, column: int) -> Tensor:
            return self._pixels[rows[:, row, :, None] + columns[:, column, None]].float()

        height = rows.shape[2]
        down, right = weights[:, :height, None, None], weights[:, None, height:, None]
        above = torch.lerp(corner(0, 0), corner(0, 1), right)
        below = torch.lerp(corner(1, 0), corner(1, 1), right)
        image = torch.lerp(above, below, down).add_(0.5).floor_()  # (N, H, W, C)
        if choices[0].jitter is not None:
            factors = torch.tensor([chosen.jitter for chosen in choices], device=image.device)
            image = _jitter(image, factors, inside[..., None])
        fill = self._transform.fill
        fill = (fill,) if isinstance(fill, int) else tuple(fill)
        if len(fill) not in (1, image.shape[3]):
            raise UserError(
                f"fill has {len(fill)} values and the images have {image.shape[3]} channels"
            )
        colour = torch.tensor(fill, dtype=image.dtype, device=image.device)
        image = torch.where(inside[..., None], image, colour)
        return image.to(torch.uint8).permute(0, 3, 1, 2).contiguous()


def check_device(kind: Any) -> None:
    """UserError where a kind of truth has no form that is made on a device."""
    if not hasattr(kind, "from_pixels"):
        raise UserError(
            f"`DeviceLoader` knows no {kind.name}, only kinds of truth with a value at every pixel that have a method "
            "from_pixels; take `TrainLoader`"
        )


def _grids(
    places: list[tuple[int, int]], choices: list[Choices], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each pixel of a batch lies in the table of pixels.

    Args:
        places: of each sample, its first pixel in the table and its width.
        choices: of each sample, what was drawn.
        size: (height, width) of the batch.

    Returns:
        rows (N, 3, H) and columns (N, 3, W), to be added: the upper, the lower and the nearest row; the left, the
        right and the nearest column. Weights (N, H + W) of the lower row and of the right column.
    """
    height, width = size
    rows = np.zeros((len(choices), 3, height), dtype=np.int64)
    columns = np.zeros((len(choices), 3, width), dtype=np.int64)
    weights = np.zeros((len(choices), height + width), dtype=np.float32)
    for i, ((first, stride), chosen) in enumerate(zip(places, choices, strict=True)):
        h, w = chosen.size
        rows[i, :, :h], weights[i, :h] = _axis(chosen.rows, h)
        rows[i] = rows[i] * stride + first  # of the padding too, whose pixels must be somewhere
        places_x, weights_x = _axis(chosen.columns, w)
        order = slice(None, None, -1) if chosen.flip else slice(None)
        columns[i, :, :w] = places_x[:, order]
        weights[i, height : height + w] = weights_x[order]
    return rows, columns, weights


def _axis(window: slice, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each pixel that a window's side is resized to: before, after and nearest (3, size); the second's weight."""
    length = window.stop - window.start
    at = np.clip((np.arange(size) + 0.5) * (length / size) - 0.5, 0, length - 1)
    before = np.floor(at).astype(np.int64)
    # OpenCV's own nearest, ties included.
    numbers = np.arange(length, dtype=np.float32)[None]
    nearest = cv2.resize(numbers, (size, 1), interpolation=cv2.INTER_NEAREST_EXACT)[0]
    after = np.minimum(before + 1, length - 1)
    places = np.stack([before, after, nearest.astype(np.int64)]) + window.start
    return places, (at - before).astype(np.float32)


def _insides(choices: list[Choices], height: int, width: int) -> np.ndarray:
    """(N, 2, max(H, W)) bool: which rows and which columns are not padding."""
    sizes = np.array([chosen.size for chosen in choices])
    return np.arange(max(height, width)) < sizes[:, :, None]


def _jitter(image: Tensor, factors: Tensor, inside: Tensor) -> Tensor:
    """(N, H, W, C) grey levels: brightness, contrast about the mean inside, saturation, as on the host."""
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    image = (image * brightness).clamp_(0, 255)
    total = torch.where(inside, image, 0).sum((1, 2, 3), keepdim=True, dtype=torch.float64)
    count = inside.sum((1, 2, 3), keepdim=True) * image.shape[3]
    mean = (total / count).to(image.dtype)
    image = ((image - mean) * contrast + mean + 0.5).clamp_(0, 255).floor_()
    if image.shape[3] != 3:
        return image
    grey = (image @ image.new_tensor([0.299, 0.587, 0.114]))[..., None].round_()
    return torch.lerp(grey, image, saturation).round_().clamp_(0, 255)
