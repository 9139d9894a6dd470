from __future__ import annotations

import copy

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from densekd.distill.discriminator import (
    Discriminator,
    DiscriminatorLoss,
    SpectralNorm,
    frozen,
    student_score,
)
from densekd.losses import gradient_penalty, holistic
from tests.golden_rule import golden_shapes, golden_state, load_golden

CONVENTIONS = ("paper", "authors")


def small(convention="paper", seed=0, **kwargs):
    torch.manual_seed(seed)
    model = Discriminator(3, channels=8, convention=convention, **kwargs)
    for attention in (model.attn1, model.attn2):
        nn.init.constant_(attention.gamma, 0.3)
    return model


def batch(n=2, size=(12, 15), seed=0):
    g = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, 41, 53, generator=g)
    teacher, student = (2 * torch.randn(n, 3, *size, generator=g) for _ in range(2))
    mask = torch.rand(n, *size, generator=g) > 0.3
    return images, teacher, student, mask


def authors_discriminator():
    state = golden_state(golden_shapes("discriminator"))
    for key, value in state.items():
        if key.endswith(("_u", "_v")):
            state[key] = value / value.norm()
    state["attn1.gamma"].fill_(0.3)
    state["attn2.gamma"].fill_(-0.2)
    model = Discriminator(19, convention="authors")
    model.load_state_dict(state)
    return model.train()


def assert_gradient(actual, golden):
    if golden.norm() < 1e-8:  # zero by symmetry (softmax ignores a shift): only rounding is left
        assert actual.norm() < 1e-8
    else:
        assert (actual - golden).norm() / golden.norm() <= 1e-4


def test_golden_score():
    golden, model = load_golden("seed_discriminator"), authors_discriminator()
    logits = golden["student_logits"].requires_grad_()
    score = model(logits)
    score.sum().backward()
    torch.testing.assert_close(score, golden["score_student"], rtol=1e-5, atol=0)
    assert_gradient(logits.grad, golden["score_student.grad_input"])


def test_golden_penalty():
    golden, model = load_golden("seed_discriminator"), authors_discriminator()
    alpha = golden["gp.alpha"]
    mixed = alpha * golden["teacher_logits"] + (1 - alpha) * golden["student_logits"]
    mixed.requires_grad_()
    penalty = 10 * gradient_penalty(model(mixed), mixed)
    penalty.backward()
    torch.testing.assert_close(penalty, golden["gp.loss"], rtol=1e-5, atol=0)
    parameters = dict(model.named_parameters())
    rows = [key for key in golden if key.startswith("gp.grad.")]
    assert rows
    for row in rows:
        assert_gradient(parameters[row.removeprefix("gp.grad.")].grad, golden[row])


def test_authors_keys():
    shapes = {
        k: list(v.shape) for k, v in Discriminator(19, convention="authors").state_dict().items()
    }
    assert shapes == golden_shapes("discriminator")


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("size", [(1, 1), (12, 15), (16, 16), (33, 41), (65, 65), (70, 131)])
def test_shape(convention, size):
    images, _, student, mask = batch(size=size)
    for m in (None, mask):
        score = small(convention)(student, images, m)
        assert score.shape == (2, 1, 1, 1)
        assert score.isfinite().all()


@pytest.mark.parametrize("image_channels", [1, 4])
def test_other_images(image_channels):
    images = torch.rand(2, image_channels, 24, 24)
    model = small(image_channels=image_channels)
    assert model(torch.randn(2, 3, 12, 15), images).shape == (2, 1, 1, 1)


def test_no_image_sees_another():
    images, _, student, mask = batch(n=3)
    model = small().eval()
    together = model(student, images, mask)
    alone = torch.cat(
        [model(s[None], i[None], m[None]) for s, i, m in zip(student, images, mask, strict=True)]
    )
    torch.testing.assert_close(together, alone)


def test_masked_pixels_do_not_count():
    images, _, student, mask = batch(size=(41, 53))  # the image's own size
    model = small().eval()
    score = model(student, images, mask)
    hidden = ~mask[:, None]
    changed = model(student.masked_fill(hidden, 9.0), images.masked_fill(hidden, 0.5), mask)
    torch.testing.assert_close(changed, score, rtol=0, atol=0)
    assert not torch.equal(model(student, images), score)


def test_the_image_counts():
    images, _, student, _ = batch()
    model = small().eval()
    assert not torch.equal(model(student, images), model(student, images.flip(0)))


def test_exception():
    images, teacher, student, mask = batch()
    model = small()
    with pytest.raises(ValueError, match="convention is 'wgan'"):
        Discriminator(3, convention="wgan")
    with pytest.raises(ValueError, match="at least 1"):
        Discriminator(0)
    with pytest.raises(ValueError, match=r"takes \(N, 3, h, w\)"):
        model(student[:, :2], images)
    with pytest.raises(ValueError, match="images are missing"):
        model(student)
    with pytest.raises(ValueError, match="set image_channels"):
        model(student, images[:, :1])
    with pytest.raises(ValueError, match=r"expected torch\.bool"):
        model(student, images, mask[..., 1:])
    with pytest.raises(ValueError, match="mode is 'gan'"):
        DiscriminatorLoss(model)(images, teacher, student, mode="gan")
    with pytest.raises(ValueError, match="resize one of them"):
        DiscriminatorLoss(model)(images, teacher, student[..., 1:])


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("mode", ["wgan-gp", "hinge"])
def test_loss_trains_the_discriminator_alone(convention, mode):
    images, teacher, student, mask = batch()
    teacher.requires_grad_()
    student.requires_grad_()
    loss = DiscriminatorLoss(small(convention))
    terms = loss(images, teacher, student, mask, mode=mode)
    expected = {"discriminator/adversarial"}
    assert set(terms) == expected | ({"discriminator/penalty"} if mode == "wgan-gp" else set())
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())
    assert teacher.grad is None
    assert student.grad is None


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_gradients_are_finite_when_no_pixel_is_valid(convention):
    images, teacher, student, mask = batch(n=1)
    loss = DiscriminatorLoss(small(convention))
    terms = loss(images, teacher, student, torch.zeros_like(mask))
    sum(terms.values()).backward()
    assert all(p.grad.isfinite().all() for p in loss.parameters())
    assert terms["discriminator/penalty"].item() == pytest.approx(10, abs=1e-3)


def test_alpha_comes_from_the_generator_or_the_caller():
    images, teacher, student, _ = batch()
    loss = DiscriminatorLoss(small()).eval()

    def penalty(**kwargs):
        return loss(images, teacher, student, **kwargs)["discriminator/penalty"]

    drawn = penalty(generator=torch.Generator().manual_seed(7))
    alpha = torch.rand(2, 1, 1, 1, generator=torch.Generator().manual_seed(7))
    assert torch.equal(drawn, penalty(alpha=alpha))
    torch.testing.assert_close(penalty(alpha=alpha, penalty_weight=1.0) * 10, drawn)


def test_the_penalty_is_taken_where_the_maps_are_mixed():
    images, teacher, student, mask = batch()
    model = small().eval()
    alpha = torch.rand(2, 1, 1, 1)
    mixed = (alpha * teacher.softmax(1) + (1 - alpha) * student.softmax(1)).requires_grad_()
    expected = 10 * gradient_penalty(model.score(mixed, images, mask), mixed)
    terms = DiscriminatorLoss(model)(images, teacher, student, mask, alpha)
    torch.testing.assert_close(terms["discriminator/penalty"], expected)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_autocast_does_not_reach_inside(convention):
    images, teacher, student, mask = batch()
    alpha = torch.rand(2, 1, 1, 1)
    loss = DiscriminatorLoss(small(convention)).eval()
    plain = loss(images, teacher, student, mask, alpha)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(images, teacher, student, mask, alpha)
        score = loss.discriminator(student.bfloat16(), images.bfloat16(), mask)
    for name, value in plain.items():
        assert torch.equal(inside[name], value)
    assert score.dtype == torch.float32


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_student_score(convention):
    images, _, student, mask = batch()
    student.requires_grad_()
    model = small(convention)
    model.attn1.gamma.requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    holistic(student_score(model, images, student, mask)).backward()
    assert student.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == before


def test_frozen_restores_after_an_error():
    model = nn.Linear(2, 2)

    def fail():
        with frozen(model):
            assert not model.weight.requires_grad
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert model.weight.requires_grad


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_spectral_norm_moves_only_in_train_mode_and_survives_copies(convention):
    images, _, student, _ = batch()
    model = small(convention)
    start = {k: v.clone() for k, v in model.named_buffers()}

    def moved():
        ends = ("_u", "_v")
        return [not torch.equal(v, start[k]) for k, v in model.named_buffers() if k.endswith(ends)]

    model.eval()
    model(student, images)
    assert not any(moved())
    model.train()
    model(student, images)
    assert all(moved())

    clone = copy.deepcopy(model)
    fresh = small(convention, seed=1)
    fresh.load_state_dict(model.state_dict())
    expected = model(student, images)
    assert torch.equal(clone(student, images), expected)
    assert torch.equal(fresh(student, images), expected)


def test_spectral_norm_finds_the_largest_singular_value():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 4, stride=2, padding=1)
    weight = conv.weight.detach().clone()
    x = torch.randn(1, 3, 8, 8)
    expected = nn.functional.conv2d(
        x, weight / torch.linalg.matrix_norm(weight.flatten(1), 2), conv.bias, stride=2, padding=1
    )
    layer = SpectralNorm(conv)
    for _ in range(200):
        y = layer(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


def test_a_few_steps_teach_it_to_tell_them_apart():
    images, _, _, _ = batch(n=4)
    teacher = 5 * torch.randn(4, 3, 12, 15)
    student = 0.1 * torch.randn(4, 3, 12, 15)
    loss = DiscriminatorLoss(small())
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2, betas=(0.9, 0.99))
    for _ in range(20):
        optimizer.zero_grad()
        terms = loss(images, teacher, student, generator=torch.Generator().manual_seed(0))
        sum(terms.values()).backward()
        optimizer.step()
    model = loss.discriminator.eval()
    assert (model(teacher, images) > model(student, images).max()).all()


def _gradients(module, rows, steps, alpha):
    """Three steps of SGD on the given rows of the batch, and the last step's gradients and buffers."""
    images, teacher, student, mask = (x[rows] for x in batch(n=4))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(module(images, teacher, student, mask, alpha[rows]).values()).backward()
        optimizer.step()
    # Copies as numpy: tensors would travel through file descriptors of a process that has ended.
    named = {n.removeprefix("module."): p.grad for n, p in module.named_parameters()}
    named |= {n.removeprefix("module."): b for n, b in module.named_buffers()}
    return {name: value.detach().numpy().copy() for name, value in named.items()}


def _worker(rank, address, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    try:
        module = nn.parallel.DistributedDataParallel(DiscriminatorLoss(small()))
        alpha = torch.linspace(0.1, 0.9, 4).view(4, 1, 1, 1)
        queue.put(_gradients(module, slice(2 * rank, 2 * rank + 2), 3, alpha))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow  # two processes with torch in each
@pytest.mark.dist
def test_ddp_gradients_equal_the_full_batch(tmp_path):
    context = mp.get_context("spawn")
    queue = context.Queue()
    address = f"file://{tmp_path / 'rendezvous'}"
    workers = [context.Process(target=_worker, args=(rank, address, queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0]

    alpha = torch.linspace(0.1, 0.9, 4).view(4, 1, 1, 1)
    expected = _gradients(DiscriminatorLoss(small()), slice(None), 3, alpha)
    for name, value in expected.items():
        want = torch.from_numpy(value)
        assert all(
            torch.equal(torch.from_numpy(r[name]), torch.from_numpy(results[0][name]))
            for r in results
        ), name
        error = (torch.from_numpy(results[0][name]) - want).norm()
        assert error <= 1e-5 * want.norm().clamp(min=1e-3), name
