from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from densekd.losses import PairWise, pair_wise, pool_nodes
from densekd.losses.pair_wise import function, gram, rows
from densekd.losses.pair_wise import nodes as nodes_file
from tests.golden_rule import load_golden

FORMS = [
    {},
    {"granularity": 3, "pooling": "max"},
    {"granularity": 0.5, "convention": "authors"},
    {"affinity": "sigmoid", "convention": "authors2019"},
    {"convention": "cirkd"},
    {"affinity": "softmax", "norm_gradient": False},
    {"granularity": 1, "connection_range": 3},
    {"granularity": 1, "connection_range": (3, 5), "affinity": "softmax"},
    {"granularity": 1, "connection_range": 0.5, "affinity": "sigmoid"},
    {"granularity": 1, "connection_range": 1.0},
]


def pair(n=2, c=4, h=7, w=9, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    student = torch.randn(n, c, h, w, generator=g, dtype=dtype)
    return student.requires_grad_(), torch.randn(n, c + 2, h, w, generator=g, dtype=dtype)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_smoke(form):
    student, teacher = pair()
    teacher.requires_grad_()
    mask = torch.rand(2, 7, 9, generator=torch.Generator().manual_seed(3)) > 0.5
    for m in (None, mask):
        student.grad = None
        loss = pair_wise(student, teacher, mask=m, **form)
        loss.backward()
        assert loss.shape == ()
        assert loss > 0
        assert student.grad.isfinite().all()
        assert student.grad.abs().sum() > 0
        assert teacher.grad is None
        assert torch.equal(PairWise(**form)(student, teacher, m), loss)
        same = pair_wise(teacher, teacher, mask=m, **form)
        assert same.abs() < 1e-10


def test_value_by_hand():
    # Two nodes. Student at right angles (a_12 = 0), teacher parallel (a_12 = 1): of 4 pairs 2 differ by 1.
    student = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).view(1, 2, 1, 2)
    teacher = torch.tensor([[1.0, 3.0]]).view(1, 1, 1, 2)
    assert pair_wise(student, teacher, granularity=1).item() == pytest.approx(0.5)
    # A third node, like the first, three apart: full range has pairs 1-2, 2-3 (both ways) of 9.
    student = torch.tensor([[1.0, 0.0, 1.0], [0.0, 2.0, 0.0]]).view(1, 2, 1, 3)
    teacher = torch.ones(1, 1, 1, 3)
    assert pair_wise(student, teacher, granularity=1).item() == pytest.approx(4 / 9)
    # A window of 3 nodes has 7 pairs (2 + 3 + 2), the same 4 of which differ.
    assert pair_wise(student, teacher, granularity=1, connection_range=3).item() == pytest.approx(
        4 / 7
    )


def test_average_pooling_of_odd_sizes_uses_what_the_cell_has():
    x = torch.arange(15.0).view(1, 1, 3, 5)
    nodes, valid = nodes_file.make_nodes(x, (2, 2), "avg", None)
    expected = torch.tensor([[3.0, 5.0, 6.5], [10.5, 12.5, 14.0]]).view(1, 1, 2, 3)
    assert valid is None
    torch.testing.assert_close(nodes, expected)


@pytest.mark.parametrize("scale", [0.5, 0.25, 0.125, 0.03125])
def test_golden_authors(scale):
    golden = load_golden("seed_losses")
    student = golden["feature_student"].requires_grad_()
    loss = pair_wise(student, golden["feature_teacher"], granularity=scale, convention="authors")
    loss.backward()
    expected = golden[f"pair_wise.scale_{scale}.grad"]
    torch.testing.assert_close(loss, golden[f"pair_wise.scale_{scale}.loss"], rtol=1e-5, atol=0)
    assert (student.grad - expected).norm() / expected.norm() <= 1e-4


@pytest.mark.parametrize(
    ("row", "kwargs"),
    [
        ("cirkd", {"convention": "cirkd"}),
        ("authors2019.raw", {"convention": "authors2019"}),
        ("authors2019.softmax", {"convention": "authors2019", "affinity": "softmax"}),
        ("authors2019.sigmoid", {"convention": "authors2019", "affinity": "sigmoid"}),
    ],
)
def test_golden_zoo(row, kwargs):
    inputs, golden = load_golden("seed_losses"), load_golden("zoo_losses")
    if row == "cirkd":
        student, teacher = inputs["feature_student"], inputs["feature_teacher"]
    else:
        student, teacher = golden["small_feature_student"], golden["small_feature_teacher"]
    student = student.requires_grad_()
    loss = pair_wise(student, teacher, **kwargs)
    loss.backward()
    expected = golden[f"pair_wise.{row}.grad"]
    torch.testing.assert_close(loss, golden[f"pair_wise.{row}.loss"], rtol=1e-5, atol=0)
    assert (student.grad - expected).norm() / expected.norm() <= 1e-4


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"convention": "cirk"}, "choose one of"),
        ({"pooling": "mean"}, "pooling is 'mean'"),
        ({"affinity": "dot"}, "affinity is 'dot'"),
        ({"granularity": 0}, "granularity is 0"),
        ({"granularity": True}, "granularity is True"),
        ({"granularity": 1.5}, "fraction of the map's side"),
        ({"connection_range": 4}, "odd window"),
        ({"connection_range": 1}, "at least 3"),
        ({"connection_range": (3, 2)}, "odd window"),
        ({"connection_range": 0.0}, "odd window"),
        ({"convention": "cirkd", "granularity": 4}, "fixes it to 2"),
        ({"convention": "authors", "affinity": "softmax"}, "fixes it to 'cosine'"),
        ({"convention": "authors", "connection_range": 3}, "fixes it to None"),
    ],
)
def test_exception_arguments(kwargs, message):
    student, teacher = pair()
    with pytest.raises(ValueError, match=message):
        pair_wise(student, teacher, **kwargs)
    with pytest.raises(ValueError, match=message):
        PairWise(**kwargs)


def test_exception_shapes():
    student, teacher = pair()
    with pytest.raises(ValueError, match="same stride"):
        pair_wise(student, teacher[..., :-1])
    with pytest.raises(ValueError, match=r"expected torch\.bool"):
        pair_wise(student, teacher, mask=torch.ones(2, 7, 8, dtype=torch.bool))


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_a_teacher_pooled_before(form, masked):
    student, teacher = pair()
    mask = torch.rand(2, 7, 9, generator=torch.Generator().manual_seed(5)) > 0.5 if masked else None
    term = PairWise(**form)
    expected = term(student, teacher, mask)
    expected.backward()
    gradient, student.grad = student.grad, None
    kept = term.reduce(teacher.requires_grad_(), mask)
    assert not kept.requires_grad
    loss = term(student, kept, mask, pooled_teacher=True)
    loss.backward()
    assert torch.equal(loss, expected)
    assert torch.equal(student.grad, gradient)
    half = term(student, kept.half(), mask, pooled_teacher=True)
    torch.testing.assert_close(half, expected, rtol=5e-3, atol=1e-7)


def test_nodes():
    x = torch.arange(15.0).view(1, 1, 3, 5)
    expected = torch.tensor([[3.0, 5.0, 6.5], [10.5, 12.5, 14.0]]).view(1, 1, 2, 3)
    torch.testing.assert_close(pool_nodes(x), expected)
    assert pool_nodes(x.half()).dtype == torch.float32
    mask = torch.ones(1, 3, 5, dtype=torch.bool)
    mask[0, :2, :2] = False
    mask[0, 0, 2] = False
    expected[0, 0, 0, :2] = torch.tensor([0.0, (3 + 7 + 8) / 3])
    torch.testing.assert_close(pool_nodes(x, mask=mask), expected)
    largest = pool_nodes(x, convention="cirkd")
    torch.testing.assert_close(largest[0, 0], torch.tensor([[6.0, 8.0, 9.0], [11.0, 13.0, 14.0]]))


def test_exception_pooled_teacher():
    student, teacher = pair()
    with pytest.raises(ValueError, match=r"expected nodes of shape \(2, C', 4, 5\)"):
        pair_wise(student, teacher, pooled_teacher=True)
    with pytest.raises(ValueError, match="same stride"):
        pair_wise(student, pool_nodes(teacher))
    with pytest.raises(ValueError, match="pooling is 'mean'"):
        pool_nodes(teacher, pooling="mean")
    with pytest.raises(ValueError, match=r"expected torch\.bool"):
        pool_nodes(teacher, mask=torch.ones(2, 7, 8, dtype=torch.bool))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_all_masked_is_a_finite_zero_with_a_graph(form):
    student, teacher = pair(n=1)
    loss = pair_wise(student, teacher, mask=torch.zeros(1, 7, 9, dtype=torch.bool), **form)
    loss.backward()
    assert loss == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_an_image_without_valid_pixels_drops_out(form):
    student, teacher = pair()
    mask = torch.ones(2, 7, 9, dtype=torch.bool)
    mask[1] = False
    torch.testing.assert_close(
        pair_wise(student, teacher, mask=mask, **form),
        pair_wise(student[:1], teacher[:1], **form),
    )


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_zero_norm_features(form):
    student, teacher = pair()
    student = student.detach()
    student[:, :, :5, :5] = 0
    student.requires_grad_()
    teacher[0] = 0
    loss = pair_wise(student, teacher, **form)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 10  # not 1 / eps


def plainly(student, teacher, mask, window, affinity):
    """Whole matrices and nothing clever. Nodes are pixels; `window` is (height, width) or None."""
    h, w = student.shape[-2:]
    y, x = torch.arange(h).repeat_interleave(w), torch.arange(w).repeat(h)
    near = torch.ones(h * w, h * w, dtype=torch.bool)
    if window is not None:
        near = ((y[:, None] - y).abs() <= window[0] // 2) & (
            (x[:, None] - x).abs() <= window[1] // 2
        )
    losses = []
    for i, pair_of_maps in enumerate(zip(student, teacher, strict=True)):
        valid = torch.ones(h * w, dtype=torch.bool) if mask is None else mask[i].flatten()
        edges = near & valid & valid[:, None]
        affinities = []
        for f in pair_of_maps:
            u = F.normalize(f.flatten(1), dim=0)
            a = u.T @ u
            if affinity == "sigmoid":
                a = a.sigmoid()
            elif affinity == "softmax":
                a = a.masked_fill(~edges, float("-inf"))[valid].softmax(dim=1)
            affinities.append(a[edges[valid] if affinity == "softmax" else edges])
        if edges.any():
            losses.append((affinities[0] - affinities[1]).square().mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("affinity", ["cosine", "sigmoid", "softmax"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("window", [None, (3, 3), (3, 5), (1, 7), (7, 1), (13, 3)], ids=str)
@pytest.mark.parametrize("size", [2**20, 500, 1], ids=str)
def test_rows_equal_whole_matrices(affinity, masked, window, size, monkeypatch):
    monkeypatch.setattr(rows, "_ROW_SLICE", {"cpu": size})
    monkeypatch.setattr(rows, "_ENOUGH", {"cpu": 4})
    monkeypatch.setattr(function, "gram_pays", lambda s, t: False)
    student, teacher = pair(n=3, dtype=torch.float64)
    mask = None
    if masked:
        mask = torch.rand(3, 7, 9, generator=torch.Generator().manual_seed(5)) > 0.3
        mask[1] = False
    form = {"granularity": 1, "connection_range": window, "affinity": affinity, "mask": mask}
    loss = pair_wise(student, teacher, **form)
    (3 * loss).backward()
    found, student.grad = student.grad, None
    expected = plainly(student, teacher, mask, window, affinity)
    (3 * expected).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(found, student.grad, rtol=1e-8, atol=1e-14)
    with torch.no_grad():
        assert torch.equal(pair_wise(student, teacher, **form), loss)


def close_to_float64(student, teacher, **form):
    """Relative errors of value and gradient against the n×n matrix of cosines in float64."""
    student = student.detach().requires_grad_()
    loss = pair_wise(student, teacher, granularity=1, **form)
    loss.backward()
    exact = student.detach().double().requires_grad_()
    s, t = (F.normalize(x.flatten(2), dim=1) for x in (exact, teacher.double()))
    expected = (s.mT @ s - t.mT @ t).square().mean()
    expected.backward()
    error = (student.grad - exact.grad).norm() / exact.grad.norm()
    return abs(loss.item() / expected.item() - 1), error.item()


@pytest.mark.parametrize("noise", [1.0, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("teacher_is", ["like it", "rotated", "rotated, wider"])
@pytest.mark.parametrize("form", ["channels", "float32", "rows"])
def test_digits_are_kept(form, noise, teacher_is, monkeypatch):
    g = torch.Generator().manual_seed(0)
    student = torch.randn(2, 16, 24, 25, generator=g)
    # The same cosines in other channels: unit vectors at right angles take each channel's place.
    axes = torch.linalg.qr(torch.randn(24, 24, generator=g, dtype=torch.float64))[0][:, :16]
    if teacher_is == "rotated":
        axes = torch.linalg.qr(axes[:16])[0]
    teacher = torch.einsum("dc,nchw->ndhw", axes, student.double()).float()
    if teacher_is == "like it":
        teacher = student
    student = student + noise * torch.randn(student.shape, generator=g)
    # In float32 products of channels lose digits where graphs are alike and nodes are not; nodes of length 1 in float32
    # are 1e-7 off, the differences as large as the noise.
    loose = form == "float32" and teacher_is == "rotated"
    if form == "float32":
        monkeypatch.setattr(gram, "_FLOAT64_PRICE", {"cpu": 64})
    monkeypatch.setattr(function, "gram_pays", lambda s, t: form != "rows")
    value, gradient = close_to_float64(student, teacher)
    exact = form == "channels" or (form == "float32" and teacher_is == "rotated, wider")
    if exact:
        assert value < 2e-7
        assert gradient < 2e-7
    else:
        assert value < (1e-5 if not loose else 1e-6 / noise**2)
        assert gradient < 1e-6 + (1e-6 if loose else 2e-7) / noise


@pytest.mark.parametrize("channels", [(6, 6), (6, 4), (4, 6)], ids=str)
@pytest.mark.parametrize("norm_gradient", [True, False])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("price", [2, 64])
def test_products_of_channels_equal_the_matrix(channels, norm_gradient, masked, price, monkeypatch):
    monkeypatch.setattr(gram, "_FLOAT64_PRICE", {"cpu": price})
    g = torch.Generator().manual_seed(2)
    student = torch.randn(2, channels[0], 33, 34, generator=g)
    student[0, :, :3] = 0  # zero nodes
    student.requires_grad_()
    teacher = torch.randn(2, channels[1], 33, 34, generator=g)
    mask = torch.rand(2, 33, 34, generator=g) > 0.3 if masked else None
    losses, gradients = [], []
    for pays in (True, False):
        monkeypatch.setattr(function, "gram_pays", lambda s, t, pays=pays: pays)
        student.grad = None
        loss = pair_wise(student, teacher, granularity=1, norm_gradient=norm_gradient, mask=mask)
        (3 * loss).backward()
        losses.append(loss)
        gradients.append(student.grad)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("channels", "nodes", "kind", "expected"),
    [
        ((64, 64), 319, "cpu", False),
        ((64, 64), 320, "cpu", True),  # n = 5 C: float64 for twice the price
        (
            (64, 64),
            159,
            "meta",
            False,
        ),  # dear float64, as on many a GPU: equal widths do without it
        ((64, 64), 160, "meta", True),
        ((16, 64), 237, "cpu", False),  # 2 (2·16² + 2·16·64 + 64²) = 13312 = 237.7 (3·16 + 64) / 2
        ((16, 64), 238, "cpu", True),
        ((16, 64), 238, "meta", False),
        ((16, 64), 7607, "meta", True),
    ],
)
def test_the_form_is_chosen_by_cost(channels, nodes, kind, expected, monkeypatch):
    student, teacher = (torch.empty(1, c, 1, nodes, device=kind) for c in channels)
    assert gram.gram_pays(student, teacher) is expected
    if kind == "meta":
        return
    taken = []
    squares = gram.gram_squares
    monkeypatch.setattr(function, "gram_squares", lambda *a: taken.append(1) or squares(*a))
    student, teacher = torch.randn_like(student), torch.randn_like(teacher)
    value, _ = close_to_float64(student, teacher)
    assert value < 1e-5
    assert bool(taken) is expected


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_rows_in_slices_equal_the_matrix_at_once(form, masked, monkeypatch):
    monkeypatch.setattr(function, "gram_pays", lambda s, t: False)
    student, teacher = pair()
    mask = torch.rand(2, 7, 9, generator=torch.Generator().manual_seed(5)) > 0.3
    losses, gradients = [], []
    for size in (2**22, 300):  # all rows, and 2 of 63
        monkeypatch.setattr(rows, "_ROW_SLICE", {"cpu": size})
        student.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = pair_wise(student, teacher, mask=mask if masked else None, **form)
        loss.backward()
        losses.append(loss)
        gradients.append(student.grad)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that an operator gave."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return out


@pytest.mark.parametrize(
    "form",
    [{}, {"affinity": "sigmoid"}, {"affinity": "softmax"}, {"connection_range": 0.5}],
    ids=str,
)
@pytest.mark.parametrize("masked", [False, True])
def test_no_matrix_of_all_nodes(form, masked, monkeypatch):
    monkeypatch.setattr(rows, "_ROW_SLICE", {"cpu": 2**16})
    student, teacher = pair(c=8, h=40, w=40)
    mask = torch.ones(2, 40, 40, dtype=torch.bool) if masked else None
    with Largest() as largest:
        pair_wise(student, teacher, granularity=1, mask=mask, **form).backward()
    assert largest.numel <= 2**16  # of 2 · 1600² = 5 120 000


def test_a_window_over_everything_is_the_full_range():
    student, teacher = pair()
    full = pair_wise(student, teacher, granularity=1)
    torch.testing.assert_close(
        pair_wise(student, teacher, granularity=1, connection_range=(13, 17)), full
    )
    torch.testing.assert_close(
        pair_wise(student, teacher, granularity=1, connection_range=1.0), full
    )


def test_a_cell_larger_than_the_map_is_one_node():
    student, teacher = pair()
    assert pair_wise(student, teacher, granularity=50).abs() < 1e-10
    assert pair_wise(student, teacher, granularity=1.0).abs() < 1e-10


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"connection_range": 3, "granularity": 1},
        {"affinity": "softmax"},
        {"affinity": "sigmoid", "connection_range": 3, "granularity": 1},
        {"pooling": "max"},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(3, 4), (6, 7)], ids=str)  # the matrix; products of channels
@pytest.mark.parametrize("widths", [(3, 5), (3, 3)], ids=str)
def test_gradcheck(form, size, widths):
    student, teacher = pair(n=2, c=3, h=size[0], w=size[1], dtype=torch.float64)
    teacher = teacher[:, : widths[1]]
    mask = torch.ones(2, *size, dtype=torch.bool)
    mask[0, :2, :3] = False
    for m in (None, mask):
        torch.autograd.gradcheck(lambda s, m=m: pair_wise(s, teacher, mask=m, **form), student)


def test_norm_without_gradient_has_the_same_value():
    student, teacher = pair()
    torch.testing.assert_close(
        pair_wise(student, teacher, norm_gradient=False), pair_wise(student, teacher)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_half_precision(dtype, form):
    student, teacher = pair(h=17, w=16)
    student = (1e4 * student.detach()).to(dtype).requires_grad_()
    loss = pair_wise(student, (1e4 * teacher).to(dtype), **form)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_autocast_does_not_reach_the_matrix():
    student, teacher = pair()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = pair_wise(student, teacher)
    assert torch.equal(inside, pair_wise(student, teacher))


@pytest.mark.parametrize("norm_gradient", [True, False])
@pytest.mark.parametrize("pays", [True, False])
def test_the_way_through_the_norms(norm_gradient, pays, monkeypatch):
    monkeypatch.setattr(function, "gram_pays", lambda s, t: pays)
    student, teacher = pair(dtype=torch.float64)
    pair_wise(student, teacher, granularity=1, norm_gradient=norm_gradient).backward()
    found, student.grad = student.grad, None
    norm = student.norm(dim=1, keepdim=True)
    s = student / (norm if norm_gradient else norm.detach())
    (
        torch.einsum("nchw,ncij->nhwij", s, s)
        - torch.einsum("nchw,ncij->nhwij", *[F.normalize(teacher, dim=1)] * 2)
    ).square().mean().backward()
    torch.testing.assert_close(found, student.grad, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("affinity", ["cosine", "softmax"])
def test_exception_second_derivative(affinity):
    student, teacher = pair()
    loss = pair_wise(student, teacher, affinity=affinity)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, student, create_graph=True)


@pytest.mark.slow
def test_compile():
    student, teacher = pair(h=15, w=18)
    mask = torch.rand(2, 15, 18, generator=torch.Generator().manual_seed(5)) > 0.3
    for form in (
        {},  # products of channels
        {"granularity": 4},  # rows
        {"connection_range": 3, "mask": mask, "affinity": "softmax"},
    ):
        gradients = []
        for loss in (torch.compile(pair_wise, fullgraph=True), pair_wise):
            student.grad = None
            loss(student, teacher, **form).backward()
            gradients.append(student.grad)
        torch.testing.assert_close(*gradients)


sizes = st.integers(1, 6)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 3),
    c=sizes,
    h=sizes,
    w=sizes,
    seed=st.integers(0, 100),
    form=st.sampled_from(FORMS),
)
def test_properties(n, c, h, w, seed, form):
    student, teacher = pair(n, c, h, w, seed)
    student = student.detach()
    mask = torch.rand(n, h, w, generator=torch.Generator().manual_seed(seed)) > 0.4
    close = {"rtol": 1e-4, "atol": 1e-6}
    for m in (None, mask):
        loss = pair_wise(student, teacher, mask=m, **form)
        assert loss >= 0
        both = None if m is None else m.repeat(2, 1, 1)
        twice = pair_wise(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1), mask=both, **form)
        torch.testing.assert_close(twice, loss, **close)
        order = torch.randperm(c, generator=torch.Generator().manual_seed(seed))
        shuffled = pair_wise(student[:, order], teacher, mask=m, **form)
        torch.testing.assert_close(shuffled, loss, **close)
    g = torch.Generator().manual_seed(seed)
    lengths = torch.rand(n, 1, 1, 1, generator=g) + 0.5
    torch.testing.assert_close(
        pair_wise(student * lengths, teacher, **form), pair_wise(student, teacher, **form), **close
    )
    everywhere = torch.ones(n, h, w, dtype=torch.bool)
    torch.testing.assert_close(
        pair_wise(student, teacher, mask=everywhere, **form),
        pair_wise(student, teacher, **form),
        **close,
    )


@settings(max_examples=25, deadline=None)
@given(
    c=sizes,
    h=sizes,
    w=sizes,
    seed=st.integers(0, 100),
    affinity=st.sampled_from(["cosine", "sigmoid", "softmax"]),
)
def test_mask_is_as_if_only_valid_pixels_were_there(c, h, w, seed, affinity):
    student, teacher = pair(1, c, h, w, seed)
    mask = torch.rand(1, h, w, generator=torch.Generator().manual_seed(seed)) > 0.4
    mask[0, 0, 0] = True
    nodes = [x.movedim(1, -1)[mask].t()[None, :, None] for x in (student, teacher)]  # (1, C, 1, M)
    torch.testing.assert_close(
        pair_wise(student, teacher, granularity=1, affinity=affinity, mask=mask),
        pair_wise(*nodes, granularity=1, affinity=affinity),
        rtol=1e-4,
        atol=1e-6,
    )


@settings(max_examples=25, deadline=None)
@given(
    c=sizes,
    h=sizes,
    w=sizes,
    seed=st.integers(0, 100),
    affinity=st.sampled_from(["cosine", "sigmoid", "softmax"]),
)
def test_turned_channels_scaled_and_shuffled_nodes(c, h, w, seed, affinity):
    student, teacher = pair(1, c, h, w, seed)
    student = student.detach()
    expected = pair_wise(student, teacher, granularity=1, affinity=affinity)
    g = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(c, c, generator=g))[0]
    order = torch.randperm(h * w, generator=g)
    lengths = torch.rand(1, 1, h, w, generator=g) + 0.5
    changed = torch.einsum("dc,nchw->ndhw", turn, student * lengths)
    changed, shuffled = (x.flatten(2)[..., order].view_as(x) for x in (changed, teacher))
    torch.testing.assert_close(
        pair_wise(changed, shuffled, granularity=1, affinity=affinity),
        expected,
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_masked_pixels_do_not_enter_a_cell(pooling):
    student, teacher = pair()
    mask = torch.rand(2, 7, 9, generator=torch.Generator().manual_seed(5)) > 0.5
    loss = pair_wise(student, teacher, mask=mask, pooling=pooling)
    changed = torch.where(mask[:, None], student, torch.randn_like(student) * 100)
    torch.testing.assert_close(pair_wise(changed, teacher, mask=mask, pooling=pooling), loss)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cell", [(2, 2), (3, 2), (4, 4), (1, 5)])
def test_small_cells_average_as_pooling_does(cell, masked, monkeypatch):
    x = torch.randn(2, 3, 9, 14, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 9, 14) > 0.4 if masked else None
    if mask is not None:
        mask[0, :4, :5] = False  # cells without any
        x.data[0, :, 0, 0] = torch.nan  # which does not count
    weight = torch.randn(2, 3, -(-9 // cell[0]), -(-14 // cell[1]), dtype=torch.float64)
    found = []
    for few in (16, 0):
        monkeypatch.setattr(nodes_file, "_FEW", few)
        nodes, valid = nodes_file.make_nodes(x, cell, "avg", mask)
        (gradient,) = torch.autograd.grad((nodes * weight).sum(), x)
        found.append((nodes.detach(), gradient, valid))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])
    assert mask is None or torch.equal(found[0][2], found[1][2])
