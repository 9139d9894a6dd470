"""A loss of your own with parameters and a memory, for example

    distill: {memory: {loss: my_memory.Remembering, weight: 0.1, channels: 256, student: b3, teacher: b3}}

The student's optimizer trains the parameters; both are saved in last.pt, restored bit for bit by --resume, equal on all
ranks, and left behind when the student is saved.
"""

import torch
from torch import Tensor, nn

from densekd.losses import Wants
from densekd.ops.collectives import gather_rows


class Remembering(nn.Module):
    """Generates the teacher's feature from the student's, and compares its mean with those of earlier images.

    Args:
        channels: the width of both features.
        slots: the number of images that are remembered.
    """

    wants = Wants(targets=True, step=True)  # what the call gets besides two maps and a mask

    def __init__(self, *, channels: int, slots: int = 6) -> None:
        super().__init__()
        self.generator = nn.Conv2d(channels, channels, 1)
        self.register_buffer("queue", torch.zeros(slots, channels))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(
        self, student: Tensor, teacher: Tensor, mask: Tensor | None, *, targets: Tensor, step: int
    ) -> Tensor:
        assert targets.shape[0] == student.shape[0]
        generated = self.generator(student)  # (N, C, h, w)
        apart = generated.mean((2, 3))[:, None] - self.queue.clone()  # (N, slots, C)
        loss = (generated - teacher).square().mean() + apart.square().mean() / (1 + step)
        rows = gather_rows(teacher.mean((2, 3)))  # the images of all ranks
        # In place: a buffer keeps its shape, and DDP and checkpoints know it by its name.
        self.queue.copy_(torch.cat([rows, self.queue])[: len(self.queue)])
        self.seen += len(rows)
        return loss
