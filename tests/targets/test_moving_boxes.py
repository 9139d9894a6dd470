"""Boxes of a batch go to a device in one copy."""

import dataclasses

import torch

from benchmarks.cases import make_boxes
from benchmarks.operators import Asked
from densekd.types import Boxes, moved

ELSEWHERE = torch.device(
    "cpu:0"
)  # another name than a tensor's own "cpu", so that the boxes are packed and moved


def images():
    torch.manual_seed(0)
    many = [make_boxes(count, 3, (40, 60), i) for i, count in enumerate((3, 0, 1, 2))]
    many[0] = dataclasses.replace(many[0], ignored=torch.tensor([True, False, True]))
    # A set of one's own may have other types.
    many[3] = dataclasses.replace(
        many[3], labels=many[3].labels.int(), areas=many[3].areas.double()
    )
    return many


def test_everything_arrives_as_it_was():
    for before, after in zip(images(), moved(images(), ELSEWHERE), strict=True):
        assert (before.image_id, before.size) == (after.image_id, after.size)
        for name in ("boxes", "labels", "ignored", "areas"):
            x, y = getattr(before, name), getattr(after, name)
            assert x.dtype == y.dtype
            assert torch.equal(x, y)
    assert torch.equal(images()[0].to(ELSEWHERE).boxes, images()[0].boxes)


def test_in_one_copy():
    given = images()
    with Copies() as copies:
        there = moved(given, torch.device("meta"))
    assert copies.count == 1
    assert {image.boxes.device.type for image in there} == {"meta"}


def test_what_is_there_already_stays():
    given = images()
    assert all(a is b for a, b in zip(Boxes.all_to(given, torch.device("cpu")), given, strict=True))


class Copies(Asked):
    """Counts copies between devices."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._schema.name in ("aten::_to_copy", "aten::copy_")
        return super().__torch_dispatch__(func, types, args, kwargs)
