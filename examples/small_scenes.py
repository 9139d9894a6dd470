"""Built-in street scenes as a torch data set of (image, labels), for the loops beside this file.

Replace it with a data set of yours: images (3, H, W) float RGB in [0, 1], labels (H, W) int64 with 255 for unknown.
"""

import torch
from torch.utils.data import DataLoader, TensorDataset

from densekd import tasks
from densekd.data import SceneSet


def small_scenes(length: int = 8) -> tuple[TensorDataset, tasks.Segmentation]:
    scenes = SceneSet("train", length=length, height=32, width=64)
    samples = [scenes.read(index) for index in range(length)]
    images = torch.stack([torch.from_numpy(s.image.copy()).permute(2, 0, 1) for s in samples])
    labels = torch.stack([torch.from_numpy(s.target.copy()).long() for s in samples])
    task = tasks.Segmentation(scenes.classes, scenes.palette, ignore_index=scenes.ignore_index)
    return TensorDataset(images.float() / 255, labels), task


def small_loader() -> tuple[DataLoader, tasks.Segmentation]:
    data, task = small_scenes()
    return DataLoader(data, batch_size=4), task
