"""CIRKD's memories: what is remembered, what is compared, and what is saved."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from densekd.losses import CrossImageMemory
from densekd.losses.cross_image_memory import _draw, _push
from tests.losses.house_rules import maps


def memory(**options):
    defaults = {"pixel_memory": 12, "region_memory": 3, "pixels_per_step": 4, "temperature": 0.5}
    return CrossImageMemory(5, 3, **{**defaults, **options})


def batch(seed=0, n=2):
    student, teacher, labels = maps(n, 5, 6, 7, seed)
    return student, teacher, labels % 3


def test_pixels_are_remembered_under_their_own_class():
    term = memory()
    _, teacher, labels = batch()
    labels[0, :3] = 255
    term(teacher, teacher, targets=labels)
    unit = F.normalize(teacher, dim=1)
    for k in range(3):
        own = unit.movedim(1, -1)[labels == k]
        assert term.pixels_seen[k] == 4
        for entry in term.pixels[k, :4]:
            assert (own - entry).norm(dim=1).min() < 1e-5


def test_regions_are_the_means_of_a_class_in_an_image():
    term = memory()
    _, teacher, labels = batch()
    labels[1][labels[1] == 2] = 0  # class 2 is in the first image alone
    term(teacher, teacher, targets=labels)
    assert term.regions_seen.tolist() == [2, 2, 1]
    unit = F.normalize(teacher, dim=1)
    expected = F.normalize(unit[0][:, labels[0] == 2].mean(dim=1), dim=0)
    torch.testing.assert_close(term.regions[2, 0], expected)


def test_masked_and_ignored_pixels_are_not_remembered():
    term = memory()
    _, teacher, labels = batch()
    mask = torch.zeros(2, 6, 7, dtype=torch.bool)
    mask[0, 0, :2] = True
    labels[0, 0, :2] = torch.tensor([1, 255])
    teacher = teacher.masked_fill(~mask[:, None], torch.nan)
    term(teacher, teacher, mask=mask, targets=labels)
    assert term.pixels_seen.tolist() == [0, 1, 0]
    assert term.regions_seen.tolist() == [0, 1, 0]
    torch.testing.assert_close(term.pixels[1, 0], F.normalize(teacher[0, :, 0, 0], dim=0))
    assert term.pixels.isfinite().all()


def test_the_oldest_give_way():
    queue, seen = torch.zeros(1, 4, 1), torch.zeros(1, dtype=torch.long)
    for entries, valid, expected in (
        ([1, 2], [True, True], [1, 2, 0]),
        ([9, 3], [False, True], [1, 2, 3]),
        ([4, 9], [True, False], [4, 2, 3]),
        ([5, 6, 7, 8, 9], [True, True, True, True, False], [8, 6, 7]),  # more than fit: the last
    ):
        _push(
            queue,
            seen,
            torch.tensor(entries, dtype=torch.float32)[None, :, None],
            torch.tensor([valid]),
        )
        assert sorted(queue[0, :3, 0].tolist()) == sorted(expected), entries
        assert queue[0, 3] == 0
    assert seen.item() == 8


def test_only_what_is_remembered_is_drawn():
    queue = torch.arange(2.0 * 6).view(2, 6, 1)
    columns, valid = _draw(queue, torch.tensor([2, 0]), 50)
    assert set(columns[:50, 0].tolist()) == {0.0, 1.0}
    assert valid.tolist() == [True] * 50 + [False] * 50
    columns, _ = _draw(queue, torch.tensor([99, 0]), 200)
    assert set(columns[:200, 0].tolist()) == {
        0.0,
        1.0,
        2.0,
        3.0,
        4.0,
    }  # never the place behind the queue


def test_value_by_hand():
    # One entry of each class, drawn again and again: columns (1, 0) and (0, 1), as pixels and as regions.
    term = CrossImageMemory(2, 2, temperature=1.0)
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 2)
    labels = torch.tensor([[[0, 1]]])
    student = teacher.flip(3)
    value = term(student, teacher, targets=labels)
    yes = torch.tensor([1.0, 0.0]).softmax(0)
    divergence = (yes * (yes.log() - yes.flip(0).log())).sum()
    torch.testing.assert_close(value, 2 * divergence)
    assert term(teacher, teacher, targets=labels).abs() < 1e-6
    # A class that nothing is remembered of has no columns, and copies of one column say nothing.
    fresh = CrossImageMemory(2, 2, temperature=1.0)
    assert fresh(student, teacher, targets=torch.tensor([[[0, 255]]])).abs() < 1e-6


def test_gradients_masks_and_batch_one():
    for n in (1, 2):
        term = memory()
        student, teacher, labels = batch(n=n)
        teacher.requires_grad_()
        value = term(student, teacher, targets=labels)
        value.backward()
        assert value > 0
        assert student.grad.isfinite().all()
        assert student.grad.abs().sum() > 0
        assert teacher.grad is None
    teacher = teacher.detach()
    mask = torch.rand(2, 6, 7) > 0.4
    spoiled = student.detach().masked_fill(~mask[:, None], torch.inf).requires_grad_()
    term(spoiled, teacher, mask=mask, targets=labels).backward()
    assert spoiled.grad.isfinite().all()
    assert (spoiled.grad.abs().sum(1)[~mask] == 0).all()
    student.grad = None
    nothing = term(student, teacher, mask=torch.zeros_like(mask), targets=labels)
    nothing.backward()
    assert nothing == 0
    assert torch.equal(student.grad, torch.zeros_like(student))
    for zero in (torch.zeros_like(student), student.detach() * mask[:, None]):
        zero.requires_grad_()
        term(zero, teacher, targets=labels).backward()
        assert zero.grad.isfinite().all()


def test_nothing_remembered_gives_zero_with_a_graph():
    student, teacher, labels = batch()
    for term, classes in ((memory().eval(), labels), (memory(), torch.full_like(labels, 255))):
        student.grad = None
        value = term(student, teacher, targets=classes)
        value.backward()
        assert value == 0
        assert torch.equal(student.grad, torch.zeros_like(student))


def test_unlabelled_images_are_compared_too():
    term = memory()
    student, teacher, labels = batch()
    term(student, teacher, targets=labels)
    student.grad = None
    term(student, teacher, targets=torch.full_like(labels, 255)).backward()
    assert student.grad.abs().sum() > 0


def test_gradcheck():
    term = memory()
    student, teacher, labels = batch()
    term(student, teacher, targets=labels)
    term.eval()
    small, other, _ = maps(1, 5, 2, 2, dtype=torch.float64)

    def value(x):
        torch.manual_seed(0)  # the same columns each time
        return term(x, other, targets=torch.zeros(1, 2, 2, dtype=torch.long))

    assert torch.autograd.gradcheck(value, (small,))


def test_evaluation_remembers_nothing():
    term = memory()
    student, teacher, labels = batch()
    term(student, teacher, targets=labels)
    before = copy.deepcopy(term.state_dict())
    term.eval()(student, teacher, targets=labels)
    assert all(torch.equal(before[key], value) for key, value in term.state_dict().items())


def test_saved_and_resumed_to_the_bit():
    term = memory()
    for seed in range(3):
        student, teacher, labels = batch(seed)
        term(student, teacher, targets=labels)
    other = memory()
    other.load_state_dict(copy.deepcopy(term.state_dict()))
    for seed in range(3, 6):
        student, teacher, labels = batch(seed)
        values = []
        for each in (term, other):
            torch.manual_seed(seed)
            values.append(each(student, teacher, targets=labels))
        assert torch.equal(*values)
    assert not list(term.parameters())


def test_accumulated_steps_have_one_backward():
    # The queue changes between the two forward passes and the backward pass.
    term = memory()
    losses = []
    for seed in range(2):
        student, teacher, labels = batch(seed)
        losses.append(term(student, teacher, targets=labels))
    sum(losses).backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    student, teacher, labels = batch()
    student = (1e4 * student.detach()).to(dtype).requires_grad_()
    value = memory()(student, (1e4 * teacher).to(dtype), targets=labels)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_ranks_share_what_they_remember(monkeypatch):
    """Two ranks in turn, each with the other's part of the sum: both end with the same queues."""
    from densekd.losses import cross_image_memory as module

    parts: dict[int, list[torch.Tensor]] = {0: [], 1: []}

    def run(rank: int, *, add: bool) -> CrossImageMemory:
        calls = iter(range(100))

        def reduce(x):
            if not add:
                parts[rank].append(x.clone())
            else:
                x += parts[1 - rank][next(calls)]
            return x

        monkeypatch.setattr(module, "world_size", lambda: 2)
        monkeypatch.setattr(module, "rank", lambda: rank)
        monkeypatch.setattr(module, "all_reduce_sum", reduce)
        term = memory(pixel_memory=20)
        torch.manual_seed(rank)
        student, teacher, labels = batch(seed=rank)
        term(student, teacher, targets=labels)
        return term

    for rank in (0, 1):
        run(rank, add=False)
    first, second = (run(rank, add=True) for rank in (0, 1))
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
    assert first.pixels_seen.tolist() == [8, 8, 8]
    assert first.regions_seen.tolist() == [4, 4, 4]


def test_exceptions():
    student, teacher, labels = batch()
    with pytest.raises(ValueError, match="pixel_memory is 0"):
        memory(pixel_memory=0)
    with pytest.raises(ValueError, match="labels are missing"):
        memory()(student, teacher)
    with pytest.raises(ValueError, match="features of 5 channels and the teacher has 4"):
        memory()(student[:, :4], teacher[:, :4], targets=labels)
    with pytest.raises(ValueError, match="5 channels and teacher 4: put a 1x1"):
        memory()(student, teacher[:, :4], targets=labels)
    assert "channels=5, num_classes=3, pixel_memory=12" in repr(memory())
