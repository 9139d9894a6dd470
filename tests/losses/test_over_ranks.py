"""Within `over_ranks` losses have the value and gradient of the whole batch, however unequal the ranks' parts are."""

import sys

import pytest
import torch
from torch import Tensor

from densekd import losses
from densekd.losses import berhu, cross_entropy, depth_cross_entropy, depth_l1, silog, ssi
from densekd.ops import collectives
from densekd.tasks import Detection
from densekd.types import Batch, Boxes, DenseOutput, DetectorOutput
from tests.ranks_in_threads import on_ranks

N, C, H, W = 6, 4, 6, 8
KEPT = torch.rand(N, H, W, generator=torch.Generator().manual_seed(5)) > 0.5


def masks() -> dict[str, Tensor | None]:
    """Of six images: all pixels; few on the last rank; none on the last rank; none at all."""
    g = torch.Generator().manual_seed(1)
    share = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.1, 0.0])
    uneven = torch.rand(N, H, W, generator=g) < share[:, None, None]
    empty_rank = uneven & (torch.arange(N) < 3)[:, None, None]
    return {"none": None, "uneven": uneven, "empty rank": empty_rank, "empty": uneven & False}


# Each as loss(student, teacher, mask, labels, images): `images` says which of the batch's six these are.
TERMS = {
    "attention_transfer": lambda s, t, m, y, i: losses.attention_transfer(s, t, mask=m),
    "channel_affinity": lambda s, t, m, y, i: losses.channel_affinity(s, t, mask=m),
    "channel_wise": lambda s, t, m, y, i: losses.channel_wise(s, t, mask=m),
    "class_affinity": lambda s, t, m, y, i: losses.class_affinity(s, t, mask=m),
    "decoupled": lambda s, t, m, y, i: losses.decoupled(s, t, y, mask=m),
    "dist": lambda s, t, m, y, i: losses.dist(s, t, mask=m),
    "feature_mimic": lambda s, t, m, y, i: losses.feature_mimic(
        s, t, weight=t[:, :1].sigmoid(), mask=m
    ),
    "fitnet": lambda s, t, m, y, i: losses.fitnet(s, t, mask=m),
    "intra_class": lambda s, t, m, y, i: losses.intra_class(s, t, y, num_classes=C, mask=m),
    "intra_class cirkd": lambda s, t, m, y, i: losses.intra_class(
        s, t, y, num_classes=C, mask=m, convention="cirkd"
    ),
    "localization": lambda s, t, m, y, i: losses.localization(
        s, t, bins=2, edges=2, weight=t[:, :1].sigmoid(), mask=m
    ),
    "masked_generative": lambda s, t, m, y, i: losses.masked_generative(
        s, t, lambda x: 2 * x, kept=KEPT[i], mask=m
    ),
    "masked_generative paper": lambda s, t, m, y, i: losses.masked_generative(
        s, t, lambda x: 2 * x, kept=KEPT[i], mask=m, convention="paper"
    ),
    "pair_wise": lambda s, t, m, y, i: losses.pair_wise(s, t, mask=m),
    "pearson_features": lambda s, t, m, y, i: losses.pearson_features(s, t, mask=m),
    "pearson_features mmrazor": lambda s, t, m, y, i: losses.pearson_features(
        s, t, mask=m, convention="mmrazor"
    ),
    "pixel_wise": lambda s, t, m, y, i: losses.pixel_wise(s, t, mask=m, temperature=2.0),
    "pixel_wise authors": lambda s, t, m, y, i: losses.pixel_wise(
        s, t, mask=m, convention="authors"
    ),
    "pixel_wise sigmoid": lambda s, t, m, y, i: losses.pixel_wise(s, t, mask=m, form="sigmoid"),
    "cross_entropy": lambda s, t, m, y, i: cross_entropy(s, _ignored(y, m), label_smoothing=0.1),
    "cross_entropy weighted": lambda s, t, m, y, i: cross_entropy(
        s, _ignored(y, m), class_weights=torch.tensor([0.5, 1.0, 2.0, 0.1])
    ),
    "ohem": lambda s, t, m, y, i: losses.ohem_cross_entropy(
        s, _ignored(y, m), threshold=0.1, min_kept=0.5
    ),
    "berhu": lambda s, t, m, y, i: berhu(*_metres(s, t), mask=m),
    "depth_l1": lambda s, t, m, y, i: depth_l1(*_metres(s, t), mask=m),
    "silog": lambda s, t, m, y, i: silog(*_metres(s, t), mask=m),
    "ssi": lambda s, t, m, y, i: ssi(*_metres(s, t), mask=m),
    "virtual_normal": lambda s, t, m, y, i: losses.virtual_normal(
        *_metres(s, t), torch.tensor([[9.0, 9.0, 4.0, 3.0]]).repeat(len(s), 1), mask=m, samples=40
    ),
    "depth_cross_entropy": lambda s, t, m, y, i: depth_cross_entropy(
        s, _metres(t, t)[0], depth_range=(0.5, 20.0), mask=m
    ),
}


def _ignored(labels: Tensor, mask: Tensor | None) -> Tensor:
    return labels if mask is None else labels.masked_fill(~mask, 255)


def _metres(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return s[:, :1].exp(), t[:, :1].exp()


def check(whole, of_part, ranks: int, monkeypatch) -> int:
    """`whole()` gives value and gradient (N, ...); `of_part(images)` those of some images. Returns the calls a rank."""
    value, gradient = whole()
    each = N // ranks
    parts, calls = on_ranks(ranks, lambda r: of_part(slice(r * each, (r + 1) * each)), monkeypatch)
    for part, _ in parts:
        torch.testing.assert_close(part, value, rtol=1e-10, atol=1e-12)
    # DistributedDataParallel takes the mean over ranks, of which each has the gradient of its own images alone.
    joined = torch.cat([g for _, g in parts]) / ranks
    torch.testing.assert_close(joined, gradient, rtol=1e-8, atol=1e-12)
    return calls


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("name", TERMS)
def test_value_and_gradient_are_the_whole_batchs(name, ranks, monkeypatch):
    g = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(N, C, H, W, generator=g, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(0, C, (N, H, W), generator=g)
    drawn = torch.rand(N, 40, 3, generator=g)
    first = collectives.rank  # of a rank's images, by how many it has
    module = sys.modules[losses.virtual_normal.__module__]
    monkeypatch.setattr(module, "_draw", lambda n, *_: drawn[first() * n :][:n])
    for mask in masks().values():

        def of(images: slice, mask: Tensor | None = mask) -> tuple[Tensor, Tensor]:
            s = student[images].clone().requires_grad_()
            part = None if mask is None else mask[images]
            value = TERMS[name](s, teacher[images], part, labels[images], images)
            value.backward()
            assert s.grad.isfinite().all()
            return value.detach(), s.grad

        calls = check(lambda of=of: of(slice(0, N)), of, ranks, monkeypatch)
        assert 1 <= calls <= 9


def test_outside_of_it_ranks_are_alone(monkeypatch):
    group_sized = torch.tensor([1.0, 2.0])
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    assert not collectives.is_joined()
    assert collectives.mean_over_ranks(group_sized.sum(), 2) == 1.5
    assert collectives.sum_over_ranks(group_sized) is group_sized


def detection(kind: str, images: range, seed: int = 0) -> tuple[DetectorOutput, list[Boxes]]:
    """Raw outputs of two levels on 64×64 pixels, and boxes: 3 in the first image, none in the last two."""
    g = torch.Generator().manual_seed(seed)
    anchors_each = {"fcos": 1, "retinanet": 3, "ssd": 2}[kind]
    channels = anchors_each * (3 if kind == "ssd" else 2)
    maps, anchors = {"logits": channels, "boxes": 4 * anchors_each, "centerness": 1}, []
    raw = {
        name: [torch.randn(N, c, s, s, generator=g, dtype=torch.float64) for s in (8, 4)]
        for name, c in maps.items()
    }
    for side, stride in ((8, 8), (4, 16)):
        y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        centres = torch.stack([x, y, x, y], -1).reshape(-1, 4).double() * stride + stride / 2
        halves = torch.tensor([-1.0, -1.0, 1.0, 1.0]).double() * stride / 2
        if kind == "fcos":
            anchors.append(centres + halves)
        else:
            sizes = torch.stack([halves * (k + 1) for k in range(anchors_each)])
            anchors.append((centres[:, None] + sizes).reshape(-1, 4))
    parts = {
        k: [x[images.start : images.stop].clone().requires_grad_() for x in v]
        for k, v in raw.items()
    }
    boxes = []
    for image in images:
        count = max(0, 3 - image)
        corner = torch.rand(count, 2, generator=torch.Generator().manual_seed(image)) * 30
        boxes.append(
            Boxes(
                boxes=torch.cat([corner, corner + 20], 1),
                labels=torch.arange(count) % 2,
                ignored=torch.zeros(count, dtype=torch.bool),
                areas=torch.full((count,), 400.0),
                image_id=image,
                size=(64, 64),
            )
        )
    centerness = parts["centerness"] if kind == "fcos" else None
    return DetectorOutput(parts["logits"], parts["boxes"], centerness, anchors, kind), boxes


@pytest.mark.parametrize("labelled", [N, 3, 0])
@pytest.mark.parametrize("kind", ["fcos", "retinanet", "ssd"])
def test_matches_of_detection_are_counted_over_ranks(kind, labelled, monkeypatch):
    task = Detection(["a", "b"], [(0, 0, 0), (9, 9, 9)])

    def of(images: slice) -> tuple[Tensor, Tensor]:
        here = range(*images.indices(N))
        raw, boxes = detection(kind, here)
        batch = Batch(
            images=torch.zeros(len(here), 3, 64, 64),
            targets=boxes,
            labelled=torch.tensor([i < labelled for i in here]),
            inside=torch.ones(len(here), 64, 64, dtype=torch.bool),
            names=[str(i) for i in here],
        )
        terms = task.loss(DenseOutput(raw, None, {}), batch)
        values = torch.stack([terms[name] for name in sorted(terms)])
        values.sum().backward()
        grads = [x.grad.flatten(1) for x in [*raw.logits, *raw.boxes, *(raw.centerness or [])]]
        return values.detach(), torch.cat(grads, 1)

    assert check(lambda: of(slice(0, N)), of, 2, monkeypatch) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kth_smallest_of_all_ranks(dtype, monkeypatch):
    g = torch.Generator().manual_seed(0)
    values = torch.rand(60, generator=g, dtype=dtype) * torch.logspace(-12, 6, 60, dtype=dtype)
    values[:7] = values[9]  # ties
    values[20:23] = 0.0
    parts = [values[:4], values[4:4], values[4:]]
    for k in (1, 3, 4, 30, 60):
        found, _ = on_ranks(
            3, lambda r, k=k: collectives.smallest_over_ranks(parts[r], k), monkeypatch
        )
        assert all(torch.equal(x, values.sort().values[k - 1]) for x in found)
