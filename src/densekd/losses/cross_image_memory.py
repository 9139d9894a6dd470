"""Cross-image relations to a memory (CIRKD): which remembered pixels and regions of each class a pixel resembles."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from densekd.losses._checks import check_mask, check_positive, full_precision, no_autocast
from densekd.losses._masked import check_widths, fill, labels_at, mean_of_pixels, unit
from densekd.losses._similarity_rows import row_divergence
from densekd.losses.wants import Wants
from densekd.ops.collectives import all_reduce_sum, rank, world_size


class CrossImageMemory(nn.Module):
    r"""Divergence of each pixel's similarities to remembered features of the teacher, of pixels and of regions.

    .. math:: \frac{1}{|V|} \sum_{i \in V} \sum_{Q} \mathrm{KL}(r^t_{iQ} \,\|\, r^s_{iQ}), \quad
        r_{iQ} = \operatorname{softmax}_{v \in Q} (\cos(f_i, v) / \tau)

    Q is drawn from two memories of the teacher's features, each with a queue a class: of pixels, and of regions (the
    mean of a class in an image). Yang et al., *Cross-Image Relational Knowledge Distillation for Semantic
    Segmentation* (CVPR 2022), its memory-based part, τ = 0.1. The published code weighs both by 0.1.

    Differs from the published code:

    - Pixels are remembered under **their own** class. The published code draws numbers up to the size of the class
      and takes them for positions in the image, so it remembers the image's first pixels, whatever their class.
    - A queue begins empty and not with random vectors; only what is in it is drawn. With nothing in any the value is 0.
    - Queues hold 2000 pixels and 500 regions of each class (published: 20 000 and 2000, which for 19 classes and 512
      channels are 0.9 GB). What is drawn may come twice.
    - There is no projection head: with `adapter` a 1x1 convolution brings the student to the teacher's width.
    - `mask` says which pixels are compared; labels say what is remembered alone.

    In training mode each call first remembers, then compares; in evaluation it compares alone. Over several ranks all
    remember what each has chosen, in the order of the ranks, so the queues stay equal. Memory: the queues,
    num_classes · (pixel_memory + region_memory) · channels numbers, and one slice of similarities of 2²¹ (CPU) or 2²⁴
    numbers at a time.

    Args:
        channels: the teacher's width.
        num_classes: how many classes labels have.
        pixel_memory: pixels that are remembered of each class.
        region_memory: regions that are remembered of each class.
        pixels_per_step: pixels of each class that a call adds on each rank, drawn at random; published: 16 of each
            image.
        regions_per_step: regions of each class that a call adds on each rank at most, one of each image.
        pixel_contrast: remembered pixels drawn in a call, in equal parts of each class (this // num_classes + 1, as
            published).
        region_contrast: the same of regions.
        temperature: τ > 0.
        ignore_index: the label of pixels without one. A number that is no class is not remembered either.

    Attributes:
        wants: asks for a learned 1x1 convolution on the student's feature, to the teacher's width, and for the batch's
            targets, the class of each pixel (N, H, W).
        pixels, regions: buffers (num_classes, memory + 1, channels). The last place is of no account.
        pixels_seen, regions_seen: buffers (num_classes,), how many were ever added.

    Raises:
        ValueError: an argument is out of range; on a call, the shapes do not fit or targets are missing.

    Example:
        >>> loss = CrossImageMemory(channels=64, num_classes=19)
        >>> student = torch.randn(2, 64, 16, 16, requires_grad=True)
        >>> labels = torch.randint(0, 19, (2, 64, 64))
        >>> loss(student, torch.randn(2, 64, 16, 16), targets=labels).backward()
    """

    wants = Wants(adapter=True, targets=True)

    pixels: Tensor
    pixels_seen: Tensor
    regions: Tensor
    regions_seen: Tensor

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        pixel_memory: int = 2000,
        region_memory: int = 500,
        pixels_per_step: int = 16,
        regions_per_step: int = 8,
        pixel_contrast: int = 4096,
        region_contrast: int = 1024,
        temperature: float = 0.1,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        check_positive("temperature", temperature)
        counts = {
            "channels": channels,
            "num_classes": num_classes,
            "pixel_memory": pixel_memory,
            "region_memory": region_memory,
            "pixels_per_step": pixels_per_step,
            "regions_per_step": regions_per_step,
            "pixel_contrast": pixel_contrast,
            "region_contrast": region_contrast,
        }
        for name, count in counts.items():
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} is {count!r}; it must be a whole number, at least 1")
        self.channels = channels
        self.num_classes = num_classes
        self.pixels_per_step = pixels_per_step
        self.regions_per_step = regions_per_step
        self.pixel_contrast = pixel_contrast
        self.region_contrast = region_contrast
        self.temperature = temperature
        self.ignore_index = ignore_index
        for name, size in (("pixels", pixel_memory), ("regions", region_memory)):
            self.register_buffer(name, torch.zeros(num_classes, size + 1, channels))
            self.register_buffer(f"{name}_seen", torch.zeros(num_classes, dtype=torch.long))

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        mask: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:
        """student, teacher (N, C, h, w) with C = channels; mask (N, h, w) bool; targets (N, H, W) whole numbers."""
        check_widths(student, teacher)
        check_mask(mask, student)
        if teacher.shape[1] != self.channels:
            raise ValueError(
                f"the memory holds features of {self.channels} channels and the teacher has {teacher.shape[1]}: "
                "set channels to the teacher's width"
            )
        with no_autocast(student):
            s = unit(fill(full_precision(student), mask), dim=1)
            t = unit(fill(full_precision(teacher.detach()), mask), dim=1).to(s.dtype)
            if self.training:
                self._remember(t, labels_at(targets, student), mask)
            s_rows, t_rows = (x.movedim(1, -1).flatten(0, -2) for x in (s, t))  # (N·h·w, C)
            total = s.new_zeros(())
            for queue, seen, count in (
                (self.pixels, self.pixels_seen, self.pixel_contrast),
                (self.regions, self.regions_seen, self.region_contrast),
            ):
                columns, valid = _draw(queue, seen, count // self.num_classes + 1)
                columns = columns.to(s.dtype)
                rows = row_divergence(
                    (s_rows, columns),
                    (t_rows, columns),
                    temperature=self.temperature,
                    valid=valid,
                )
                total = total + mean_of_pixels(rows[:, 0], None if mask is None else mask.flatten())
        return total

    @torch.no_grad()
    def _remember(self, teacher: Tensor, labels: Tensor, mask: Tensor | None) -> None:
        """Add pixels and regions of this call, of all ranks, to the queues."""
        counted = labels != self.ignore_index
        if mask is not None:
            counted = counted & mask
        numbers = torch.arange(self.num_classes, device=labels.device)[:, None, None, None]
        member = (labels == numbers) & counted  # (K, N, h, w)

        features = teacher.movedim(1, -1).flatten(0, -2)  # (N·h·w, C)
        chosen, valid = _choose(member.flatten(1), self.pixels_per_step)
        _push(self.pixels, self.pixels_seen, *_of_all_ranks(features[chosen], valid))

        sums = (
            member.flatten(2).to(teacher.dtype).movedim(0, 1) @ teacher.flatten(2).mT
        )  # (N, K, C)
        means = unit(sums, dim=2).movedim(0, 1)  # (K, N, C)
        chosen, valid = _choose(member.flatten(2).any(dim=2), self.regions_per_step)
        entries = means.gather(1, chosen[..., None].expand(-1, -1, self.channels))
        _push(self.regions, self.regions_seen, *_of_all_ranks(entries, valid))

    def extra_repr(self) -> str:
        pixels, regions = self.pixels.shape[1] - 1, self.regions.shape[1] - 1
        return (
            f"channels={self.channels}, num_classes={self.num_classes}, pixel_memory={pixels}, "
            f"region_memory={regions}, temperature={self.temperature}"
        )


def _choose(member: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Up to `count` members of each class at random: (K, M) bool -> indices (K, count), and which of them are members.

    No step waits for the device, so the shapes do not depend on how many there are.
    """
    score = torch.rand(member.shape, device=member.device).masked_fill(~member, -1.0)
    if score.shape[1] < count:
        score = nn.functional.pad(score, (0, count - score.shape[1]), value=-1.0)
    best, chosen = score.topk(count, dim=1)
    return chosen.clamp(max=member.shape[1] - 1), best >= 0


def _of_all_ranks(entries: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """(K, E, C) and (K, E) of each rank -> (K, ranks · E, C) and (K, ranks · E) on every rank."""
    entries = entries.masked_fill(~valid[..., None], 0.0)
    ranks = world_size()
    if ranks == 1:
        return entries, valid
    # A sum of zeros and one rank's entries is those entries.
    everyone = entries.new_zeros(ranks, *entries.shape)
    flags = torch.zeros(ranks, *valid.shape, dtype=torch.long, device=valid.device)
    everyone[rank()], flags[rank()] = entries, valid.long()
    all_reduce_sum(everyone)
    all_reduce_sum(flags)
    return everyone.movedim(0, 1).flatten(1, 2), flags.movedim(0, 1).flatten(1, 2) > 0


def _push(queue: Tensor, seen: Tensor, entries: Tensor, valid: Tensor) -> None:
    """Write the valid entries behind the last ones of each class, the oldest giving way."""
    size = queue.shape[1] - 1
    order = valid.long().cumsum(dim=1)
    added = order[:, -1:]
    # Of more than fit the last stay. What is not to stay goes to the place behind the queue.
    stays = valid & (added - order < size)
    place = ((seen[:, None] + order - 1) % size).where(stays, torch.full_like(order, size))
    classes = torch.arange(queue.shape[0], device=queue.device)[:, None]
    queue[classes, place] = entries.to(queue.dtype)
    queue[:, size] = 0.0
    seen += added[:, 0]


def _draw(queue: Tensor, seen: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`count` remembered entries of each class: (K · count, C), and which are of a class that has any."""
    filled = seen.clamp(max=queue.shape[1] - 1)[:, None]  # (K, 1)
    spot = torch.rand(queue.shape[0], count, device=queue.device) * filled
    index = spot.long().minimum((filled - 1).clamp(min=0))
    classes = torch.arange(queue.shape[0], device=queue.device)[:, None]
    return queue[classes, index].flatten(0, 1), (filled > 0).expand(-1, count).flatten()
