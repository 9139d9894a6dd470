"""Virtual normals of planes, whose normals are known."""

import math
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from densekd.losses import VirtualNormal, virtual_normal
from densekd.losses.virtual_normal import _spans_a_plane
from tests.losses.depth_inputs import (
    check_half_precision,
    check_invalid_pixels,
    check_nothing_valid,
    maps,
)

module = sys.modules["densekd.losses.virtual_normal"]  # the package has a function of that name
CAMERA = (20.0, 22.0, 11.5, 7.5)  # fx, fy, cx, cy of a 16 x 24 image
SIZE = (16, 24)


def camera(n=1, values=CAMERA):
    return torch.tensor(values).repeat(n, 1)


def plane(normal, distance, values=CAMERA, size=SIZE):
    """Depth of the plane n · X = distance: distance / (n · ray)."""
    fx, fy, cx, cy = values
    v, u = torch.meshgrid(*(torch.arange(s, dtype=torch.float32) for s in size), indexing="ij")
    rays = torch.stack([(u - cx) / fx, (v - cy) / fy, torch.ones_like(u)])
    unit = torch.tensor(normal) / torch.tensor(normal).norm()
    depth = distance / (unit.view(3, 1, 1) * rays).sum(0)
    assert (depth > 0).all()
    return depth[None, None]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_parallel_planes_have_one_normal():
    near, far = plane((0.2, -0.1, 1.0), 2.0), plane((0.2, -0.1, 1.0), 3.0)
    assert virtual_normal(near, far, camera()).item() == pytest.approx(0, abs=1e-4)
    assert virtual_normal(near, near, camera()) == 0


@pytest.mark.parametrize("angle", [5.0, 30.0])
@pytest.mark.parametrize("drop", [0.0, 0.25])
def test_a_turned_plane_costs_the_distance_of_the_normals(angle, drop):
    """Normals (0, 0, 1) and (sin a, 0, cos a) are sin a + 1 - cos a apart in L1, for every triple."""
    a = math.radians(angle)
    wall, turned = plane((0.0, 0.0, 1.0), 2.0), plane((math.sin(a), 0.0, math.cos(a)), 2.0)
    expected = math.sin(a) + 1 - math.cos(a)
    for first, second in ((wall, turned), (turned, wall)):
        value = virtual_normal(first, second, camera(), drop=drop)
        assert value.item() == pytest.approx(expected, rel=1e-3)


def test_each_image_has_its_own_camera():
    other = (40.0, 30.0, 3.0, 9.0)
    normal, values = (0.1, 0.3, 1.0), (CAMERA, other)
    both = torch.cat([plane(normal, 2.0, v) for v in values])
    parallel = torch.cat([plane(normal, 1.2, v) for v in values])
    right = torch.tensor(values)
    assert virtual_normal(both, parallel, right).item() == pytest.approx(0, abs=1e-4)
    # with the cameras exchanged what was a plane is none
    bent = 1 + 0.3 * torch.rand(2, 1, *SIZE, generator=generator())
    assert virtual_normal(both * bent, both, right) > 0.05
    assert not torch.equal(
        virtual_normal(both * bent, both, right, generator=generator()),
        virtual_normal(both * bent, both, right.flip(0), generator=generator()),
    )


def test_a_common_factor_costs_nothing():
    _, target = maps(2, *SIZE)
    value = virtual_normal(1.7 * target, target, camera(2), min_distance=0.1)
    assert value.item() == pytest.approx(0, abs=1e-4)


def test_draws_can_be_repeated():
    prediction, target = maps(2, *SIZE)

    def value(seed):
        return virtual_normal(prediction, target, camera(2), generator=generator(seed))

    assert torch.equal(value(1), value(1))
    assert not torch.equal(value(1), value(2))
    torch.manual_seed(5)
    first = virtual_normal(prediction, target, camera(2))
    torch.manual_seed(5)
    assert torch.equal(virtual_normal(prediction, target, camera(2)), first)


class Dtypes(TorchDispatchMode):
    """Of all tensors that are made."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.seen |= {x.dtype for x in tree_leaves(made) if isinstance(x, torch.Tensor)}
        return made


def test_no_float64_is_needed():
    """Apple's MPS has none."""
    prediction, target = maps(2, *SIZE)
    with Dtypes() as dtypes:
        virtual_normal(prediction, target, camera(2))
    assert torch.float32 in dtypes.seen
    assert torch.float64 not in dtypes.seen


def test_a_draw_is_not_rounded_up(monkeypatch):
    """This one times 300 pixels is 296.99999, and 297 in float32."""
    draw = 16609443 / 2**24
    assert int(torch.tensor(draw) * 300) == 297
    _, target = maps(2, 15, 20)
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, draw))
    seen = []
    spans = module._spans_a_plane
    monkeypatch.setattr(module, "_spans_a_plane", lambda p, *a: (seen.append(p), spans(p, *a))[1])
    virtual_normal(target, target, camera(2), samples=1)
    expected = target.flatten(1)[:, 296]
    assert torch.equal(seen[0][:, :, 2], expected[:, None].expand(2, 3))


def test_samples_as_a_number_or_a_fraction():
    """16 x 24 pixels: a quarter is 96 triples, in whichever way it is said."""
    prediction, target = maps(1, *SIZE)
    values = [
        virtual_normal(prediction, target, camera(), samples=s, generator=generator())
        for s in (96, 96.0, 0.25)
    ]
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])


def test_which_triangles_are_kept():
    """Equilateral; a right angle with 45°; in one line; two corners 5 mm apart; twice the same corner."""
    corners = torch.tensor(
        [
            [[0, 0, 2], [1, 0, 2], [0.5, 0.866, 2]],
            [[0, 0, 2], [1, 0, 2], [0, 1, 2]],
            [[0, 0, 2], [1, 0, 2], [2, 0, 2]],
            [[0, 0, 2], [0.005, 0, 2], [0, 1, 2]],
            [[0, 0, 2], [0, 0, 2], [0, 1, 2]],
        ]
    )
    assert _spans_a_plane(corners, 0.867, 0.01).tolist() == [True, True, False, False, False]
    assert _spans_a_plane(corners, 0.6, 0.01).tolist() == [True, False, False, False, False]
    assert _spans_a_plane(corners, 1.0, 0.0).tolist() == [True, True, True, True, False]


def test_the_target_alone_says_what_is_kept():
    """A target of one row has all its points in one plane with the camera; flat in a row, they are on one line."""
    wall = plane((0.0, 0.0, 1.0), 2.0)
    mask = torch.zeros(1, *SIZE, dtype=torch.bool)
    mask[:, 3] = True
    bent = (wall * (1 + torch.rand(1, 1, *SIZE, generator=generator()))).requires_grad_()
    value = virtual_normal(bent, wall, camera(), mask=mask)
    assert value == 0
    value.backward()
    assert torch.equal(bent.grad, torch.zeros_like(bent))
    # the other way round the target's points do span planes
    assert virtual_normal(wall, bent.detach(), camera(), mask=mask) > 0


def test_dropping_the_smallest_raises_the_mean():
    prediction, target = maps(1, *SIZE)
    values = [
        virtual_normal(prediction, target, camera(), drop=d, generator=generator()).item()
        for d in (0.0, 0.25, 0.9)
    ]
    assert values == sorted(values)
    assert values[0] < values[1] < values[2]


def test_intrinsics():
    prediction, target = maps(2, *SIZE)
    unknown = camera(2)
    unknown[1] = torch.nan
    with pytest.raises(
        ValueError,
        match=r"image 1 of the batch .*\(its option `intrinsics`\), or leave virtual_normal out",
    ):
        virtual_normal(prediction, target, unknown)
    with pytest.raises(ValueError, match=r"expected \(2, 4\): fx, fy, cx, cy"):
        virtual_normal(prediction, target, camera(1))


def test_an_image_without_depth_needs_no_camera():
    """Nor is any of its pixels drawn: the other image's planes are parallel, and all there is to compare."""
    cameras = camera(2)
    cameras[1] = torch.nan
    target = plane((0.2, -0.1, 1.0), 2.0).repeat(2, 1, 1, 1)
    target[1] = 0
    prediction = 1.5 * target
    prediction[1] = 1 + torch.rand(1, *SIZE, generator=generator())
    for order in ([0, 1], [1, 0]):
        value = virtual_normal(prediction[order], target[order], cameras[order])
        assert value.item() == pytest.approx(0, abs=1e-4)


def test_a_flat_prediction_has_finite_gradients():
    """Nearly no depth: all predicted points fall together, and their normals are none."""
    _, target = maps(1, *SIZE)
    prediction = torch.full_like(target, 1e-6).requires_grad_()
    virtual_normal(prediction, target, camera()).backward()
    assert prediction.grad.isfinite().all()


def test_gradcheck():
    prediction, target = (x.double() for x in maps(1, 4, 5))
    k = camera(values=(5.0, 5.0, 2.0, 1.5)).double()
    assert torch.autograd.gradcheck(
        lambda p: virtual_normal(p, target, k, samples=12, generator=generator(), drop=0.0),
        prediction.requires_grad_(),
        atol=1e-4,
    )


def seeded(prediction, target, mask):
    torch.manual_seed(0)
    return VirtualNormal(samples=400)(prediction, target, camera(2), mask)


@pytest.mark.parametrize("check", [check_invalid_pixels, check_nothing_valid, check_half_precision])
def test_invalid_pixels_and_precision(check):
    check(seeded, *maps())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples is 0; give a number of triples"),
        ({"samples": 1.5}, "samples is 1.5"),
        ({"max_cosine": 0.0}, "max_cosine is 0.0"),
        ({"min_distance": -1.0}, "min_distance is -1.0"),
        ({"drop": 1.0}, r"drop is 1.0; expected a fraction in \[0, 1\)"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        VirtualNormal(**options)
