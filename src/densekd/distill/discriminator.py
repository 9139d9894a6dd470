"""The discriminator of holistic distillation, and its whole loss as one forward that DDP can wrap."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from densekd.layers.attention import SelfAttention2d
from densekd.losses._checks import full_precision
from densekd.losses.holistic import MODES, discriminator_loss, gradient_penalty
from densekd.ops.resize import resize_map

CONVENTIONS = ("paper", "authors")
ACTIVATIONS = ("softmax", "sigmoid", "none")


class Discriminator(nn.Module):
    """Scores how much a map looks like the teacher's: higher is more alike.

    Four spectrally normed 4×4 convolutions of stride 2 with leaky ReLU 0.1, self-attention after the third
    and the fourth, one score an image. No image sees another (`convention="paper"`).

    - ``"paper"``: sees the image (resized to the map, as the caller has it, say RGB in [0, 1]) beside the
      softmax of the logits (or what `activation` says). The last convolution is 1×1 and its scores are
      averaged over space, so that any map size fits. No normalisation over samples. Sides below 16 are
      padded with zeros to 16.
    - ``"authors"``: sees raw logits only, behind a batch norm (which mixes the samples of a batch). The last
      convolution is 4×4: one score for the authors' 65×65 map. Differs from their code: of larger maps the
      scores are averaged, and smaller ones are padded to 64 after the batch norm (theirs fail); the power
      iteration rests in eval mode. Keys are those of their checkpoints.

    Spectral norm does one power iteration per forward in train mode (``"paper"``: one per `DiscriminatorLoss`)
    and none in eval mode. It is a function of the weights and the buffers before, so that buffers stay equal
    on ranks whose weights are; DDP also broadcasts them from rank 0.

    Args:
        num_classes: channels of the map.
        image_channels: channels of the image (unused by ``"authors"``).
        channels: of the first convolution; doubled by each of the next three.
        convention: ``"paper"`` or ``"authors"``.
        activation: from what the network predicts to what is seen of it: ``"softmax"`` over classes, ``"sigmoid"``
            (a detector's class maps), or ``"none"`` (depth). ``"authors"`` looks at the bare values always.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        image_channels: int = 3,
        channels: int = 64,
        convention: str = "paper",
        activation: str = "softmax",
    ) -> None:
        super().__init__()
        if convention not in CONVENTIONS:
            raise ValueError(f"convention is {convention!r}; choose one of {CONVENTIONS}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; choose one of {ACTIVATIONS}")
        if num_classes < 1 or image_channels < 1 or channels < 1:
            raise ValueError(
                f"num_classes {num_classes}, image_channels {image_channels} and channels {channels} "
                "must each be at least 1"
            )
        self.num_classes = num_classes
        self.image_channels = image_channels
        self.convention = convention
        self.activation = "none" if convention == "authors" else activation
        authors = convention == "authors"
        norm = SpectralNorm if authors else spectral_norm

        def stage(inputs: int, outputs: int) -> nn.Sequential:
            conv = nn.Conv2d(inputs, outputs, kernel_size=4, stride=2, padding=1)
            return nn.Sequential(norm(conv), nn.LeakyReLU(0.1))

        # The names are the authors' keys.
        self.preprocess_additional = nn.BatchNorm2d(num_classes) if authors else None
        self.l1 = stage(num_classes if authors else image_channels + num_classes, channels)
        self.l2 = stage(channels, 2 * channels)
        self.l3 = stage(2 * channels, 4 * channels)
        self.attn1 = SelfAttention2d(4 * channels)
        self.l4 = stage(4 * channels, 8 * channels)
        self.attn2 = SelfAttention2d(8 * channels)
        self.last = nn.Sequential(nn.Conv2d(8 * channels, 1, kernel_size=4 if authors else 1))
        self.min_side = 64 if authors else 16

    def maps(self, logits: Tensor) -> Tensor:
        """What is seen of logits (N, K, h, w): their softmax or sigmoid, or themselves; float32 for half precision."""
        logits = full_precision(logits)
        if self.activation == "none":
            return logits
        return logits.softmax(dim=1) if self.activation == "softmax" else logits.sigmoid()

    def score(
        self, maps: Tensor, images: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """`forward` on maps (N, K, h, w) that `maps` gave or that were mixed from such."""
        self._check(maps, images, mask)
        x = maps
        if mask is not None:
            x = x.masked_fill(~mask[:, None], 0.0)
        if self.preprocess_additional is not None:
            # The batch norm counts masked pixels, as zeros.
            x = self.preprocess_additional(x)
        else:
            assert images is not None  # checked above
            image = resize_map(images.to(x.dtype), x.shape[-2:])
            if mask is not None:
                image = image.masked_fill(~mask[:, None], 0.0)
            x = torch.cat([image, x], dim=1)
        h, w = x.shape[-2:]
        if h < self.min_side or w < self.min_side:
            x = F.pad(x, (0, max(0, self.min_side - w), 0, max(0, self.min_side - h)))
        x = self.attn1(self.l3(self.l2(self.l1(x))))  # (N, 4c, h/8, w/8)
        x = self.attn2(self.l4(x))  # (N, 8c, h/16, w/16)
        return self.last(x).mean(dim=(2, 3), keepdim=True)  # (N, 1, 1, 1)

    def forward(
        self, logits: Tensor, images: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """One score an image.

        Args:
            logits: (N, K, h, w).
            images: (N, image_channels, H, W) of any size; "authors" takes None.
            mask: (N, h, w) bool, True where a pixel counts; others are zero in map and image.

        Returns:
            (N, 1, 1, 1) float32. Autocast is off inside: bf16 costs the penalty's gradients 2 to 5 %.
        """
        with torch.autocast(device_type=logits.device.type, enabled=False):
            return self.score(self.maps(logits), images, mask)

    def _check(self, maps: Tensor, images: Tensor | None, mask: Tensor | None) -> None:
        shape = tuple(maps.shape)
        if len(shape) != 4 or shape[1] != self.num_classes:
            raise ValueError(
                f"maps have shape {shape}; this discriminator takes (N, {self.num_classes}, h, w): "
                "build it with the number of classes that teacher and student predict"
            )
        if mask is not None:
            expected = (shape[0], *shape[2:])
            if mask.dtype != torch.bool or tuple(mask.shape) != expected:
                raise ValueError(
                    f"mask is {mask.dtype} of shape {tuple(mask.shape)}; expected torch.bool of shape "
                    f"{expected}, True where a pixel counts"
                )
        if self.convention == "authors":
            return
        if images is None:
            raise ValueError(
                "images are missing: the paper's discriminator is conditional on them; pass images, or "
                "build it with convention='authors'"
            )
        if images.ndim != 4 or images.shape[:2] != (shape[0], self.image_channels):
            raise ValueError(
                f"images have shape {tuple(images.shape)}; expected "
                f"({shape[0]}, {self.image_channels}, H, W): set image_channels to match the data"
            )

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, convention={self.convention!r}"


class SpectralNorm(nn.Module):
    """A convolution divided by its largest singular value, as the authors have it (keys and arithmetic).

    One power iteration per forward: v = Wᵀu/‖Wᵀu‖, u = Wv/‖Wv‖, σ = uᵀWv, where u and v carry no gradient.
    Differs from `torch.nn.utils.parametrizations.spectral_norm`, which goes u first, then v, and starts warm.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight = conv.weight.detach()
        rows = weight.flatten(1)
        del conv.weight  # leaves conv.weight unregistered: bar / sigma takes its place in `forward`
        conv.weight_bar = nn.Parameter(weight)
        conv.register_buffer("weight_u", F.normalize(torch.randn(rows.shape[0]), dim=0))
        conv.register_buffer("weight_v", F.normalize(torch.randn(rows.shape[1]), dim=0))
        self.module = conv

    def forward(self, x: Tensor) -> Tensor:
        conv: Any = self.module
        rows = conv.weight_bar.flatten(1)  # (out, in·kh·kw)
        # Fresh tensors, copied into the buffers: an earlier graph that holds u and v stays valid.
        u, v = conv.weight_u.clone(), conv.weight_v.clone()
        if self.training:
            with torch.no_grad():
                v = F.normalize(rows.t() @ u, dim=0)
                u = F.normalize(rows @ v, dim=0)
                conv.weight_u.copy_(u)
                conv.weight_v.copy_(v)
        sigma = u @ (rows @ v)
        return F.conv2d(x, conv.weight_bar / sigma, conv.bias, conv.stride, conv.padding)


class DiscriminatorLoss(nn.Module):
    """The discriminator's phase in one forward: the adversarial term and the gradient penalty.

    Under DDP wrap this module (not the discriminator) and call ``backward()`` once on the sum of what it
    returns: a penalty in a backward of its own gives silently wrong gradients. Gradients then equal the full
    batch's (`convention="paper"`). The whole runs in float32 with autocast off.

    Args:
        discriminator: what is trained.
    """

    def __init__(self, discriminator: Discriminator) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(
        self,
        images: Tensor | None,
        teacher_logits: Tensor,
        student_logits: Tensor,
        mask: Tensor | None = None,
        alpha: Tensor | None = None,
        mode: str = "wgan-gp",
        penalty_weight: float = 10.0,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """The phase's terms, to be summed.

        Args:
            images: (N, C, H, W), see `Discriminator`.
            teacher_logits: (N, K, h, w).
            student_logits: (N, K, h, w). Neither receives a gradient.
            mask: (N, h, w) bool, True where a pixel counts.
            alpha: (N, 1, 1, 1) in [0, 1], the teacher's share in the mixed maps; None draws it.
            mode: ``"wgan-gp"`` or ``"hinge"``.
            penalty_weight: of the penalty, which belongs to wgan-gp; hinge has none, as in the authors' code.
            generator: draws alpha; on several ranks each needs its own seed.

        Returns:
            ``{"discriminator/adversarial": ...}`` and in wgan-gp ``"discriminator/penalty"``, weighted.
        """
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; choose one of {MODES}")
        if teacher_logits.shape != student_logits.shape:
            raise ValueError(
                f"teacher logits {tuple(teacher_logits.shape)} and student logits "
                f"{tuple(student_logits.shape)} differ: resize one of them with densekd.ops.resize.resize_map"
            )
        discriminator = self.discriminator
        # One normed weight for all three scores. The authors' iterate at each.
        once = parametrize.cached() if discriminator.convention == "paper" else nullcontext()
        with torch.autocast(device_type=student_logits.device.type, enabled=False), once:
            teacher = discriminator.maps(teacher_logits.detach())
            student = discriminator.maps(student_logits.detach())
            terms = {
                "discriminator/adversarial": discriminator_loss(
                    discriminator.score(teacher, images, mask),
                    discriminator.score(student, images, mask),
                    mode=mode,
                )
            }
            if mode == "wgan-gp":
                if alpha is None:
                    alpha = _draw_alpha(teacher, generator)
                mixed = (alpha * teacher + (1 - alpha) * student).requires_grad_()
                penalty = gradient_penalty(discriminator.score(mixed, images, mask), mixed)
                terms["discriminator/penalty"] = penalty_weight * penalty
        return terms


def _draw_alpha(maps: Tensor, generator: torch.Generator | None) -> Tensor:
    device = maps.device if generator is None else generator.device
    alpha = torch.rand(maps.shape[0], 1, 1, 1, generator=generator, device=device)
    return alpha.to(maps.device)


@contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """Within it no parameter of `module` requires grad; afterwards each is as it was."""
    before = [(p, p.requires_grad) for p in module.parameters()]
    module.requires_grad_(False)
    try:
        yield module
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


def student_score(
    discriminator: Discriminator,
    images: Tensor | None,
    student_logits: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Scores (N, 1, 1, 1) for the student's phase: gradients reach the student and not the discriminator.

    Give it the bare discriminator, not what DDP wraps: DDP would wait for gradients that never come.
    """
    with frozen(discriminator):
        return discriminator(student_logits, images, mask)
