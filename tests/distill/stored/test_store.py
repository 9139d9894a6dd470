"""The store of what the teacher says: bytes, places, plan, and that a stored teacher teaches as the live one."""

import copy
import json
import multiprocessing

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from densekd.distill.stored.codec import Half, Int8, TopK, make_storage
from densekd.distill.stored.plan import make_plan
from densekd.distill.stored.records import RecordFile
from densekd.distill.stored.store import TeacherCache
from densekd.distill.term import Term
from densekd.errors import UserError
from densekd.losses import FeatureMimic, PairWise, PixelWise
from densekd.types import SampleKey
from tests.distill.helpers import make_batch, make_distiller

SHAPE = (7, 5, 6)

# --- bytes -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(
    form=st.sampled_from(["fp16", "int8", "top_k"]),
    scale=st.floats(1e-2, 100),
    shift=st.floats(-50, 50),
    k=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_what_comes_back_is_within_the_stated_error(form, scale, shift, k, seed):
    x = scale * torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(seed)) + shift
    storage = make_storage(form, SHAPE, k)
    raw = storage.encode(x)
    assert raw.shape == (3, storage.nbytes)
    assert raw.dtype == torch.uint8
    back = storage.decode(raw)
    assert back.shape == x.shape
    assert back.dtype == torch.float32
    assert ((storage.seen(back) - storage.seen(x)).abs() <= storage.error(x) * (1 + 1e-5)).all()
    # each image by itself
    assert torch.equal(storage.encode(x[1:2])[0], raw[1])


def test_int8_keeps_constant_channels_and_the_zeros_of_a_relu():
    x = torch.randn(2, *SHAPE).relu()
    x[:, 0], x[:, 1] = 0.0, 3.25
    back = Int8(SHAPE).decode(Int8(SHAPE).encode(x))
    assert torch.equal(back[:, :2], x[:, :2])
    assert (back[x == 0] == 0).all()


def test_half_refuses_what_it_cannot_hold():
    with pytest.raises(
        UserError, match=r"65504 and the teacher's reach 1e.06; take `storage` int8"
    ):
        Half(SHAPE).encode(torch.full((1, *SHAPE), -1e6))


def test_top_k_keeps_the_largest_and_the_sum_of_the_rest():
    x = 3 * torch.randn(2, *SHAPE)
    storage = TopK(SHAPE, 3)
    p, q = x.softmax(1), storage.decode(storage.encode(x)).softmax(1)
    places = x.topk(3, dim=1).indices
    torch.testing.assert_close(q.gather(1, places), p.gather(1, places), rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(q.sum(1), torch.ones(2, *SHAPE[1:]))
    others = torch.ones_like(p).scatter(1, places, 0).bool()
    rest = q[others].reshape(2, -1)
    assert torch.allclose(p.masked_fill(~others, 0).sum((1, 2, 3)), rest.sum(1), atol=1e-2)
    # at another temperature too: what comes back is as good as logits
    same = 12 * torch.nn.functional.one_hot(torch.randint(7, (1, 5, 6)), 7).movedim(-1, 1).float()
    back = TopK(SHAPE, 1).decode(TopK(SHAPE, 1).encode(same))
    torch.testing.assert_close((back / 4).softmax(1), (same / 4).softmax(1), rtol=1e-2, atol=1e-3)


def test_sizes():
    assert Half(SHAPE).nbytes == 2 * 210
    assert Int8(SHAPE).nbytes == 210 + 8 * 7
    assert TopK(SHAPE, 3).nbytes == 3 * 30 * 3
    assert TopK((300, 5, 6), 3).nbytes == 3 * 30 * 4


# --- places ----------------------------------------------------------------------------------------------------------


def record(value, size=40):
    return np.full(size, value, np.uint8)


def test_records_stand_where_they_were_put(tmp_path):
    file = RecordFile(tmp_path / "new" / "a.maps", 5, 40)
    into = np.empty(40, np.uint8)
    assert not file.read(3, into)
    file.write(3, record(7))
    file.write(0, record(0))  # whose checksum must not be mistaken for nothing
    again = RecordFile(tmp_path / "new" / "a.maps", 5, 40)
    assert again.filled() == 2
    assert again.read(3, into)
    assert (into == 7).all()
    assert again.read(0, into)
    assert (into == 0).all()
    assert not again.read(4, into)
    # one that is open sees what another writes
    again.write(4, record(9))
    assert file.read(4, into)


def test_a_file_that_cannot_be_made_is_the_users_to_mend(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match=r"cannot be used .*`folder` another place"):
        RecordFile(tmp_path / "taken" / "a.maps", 2, 40)


@pytest.mark.parametrize("cut", [1, 20, 39])
def test_a_half_written_record_is_none(tmp_path, cut):
    path = tmp_path / "a.maps"
    file = RecordFile(path, 2, 40)
    file.write(1, record(7))
    with open(path, "r+b") as raw:
        raw.seek(8 + 40)
        raw.write(bytes(cut))
    assert not file.read(1, np.empty(40, np.uint8))
    file.write(1, record(7))
    assert file.read(1, np.empty(40, np.uint8))


def _fill(path, start):
    file = RecordFile(path, 50, 40)
    for i in range(50):
        file.write((i + start) % 50, record((i + start) % 50))


def test_processes_share_a_file(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_fill, args=(tmp_path / "a.maps", s)) for s in (0, 13, 29)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
        assert writer.exitcode == 0
    file, into = RecordFile(tmp_path / "a.maps", 50, 40), np.empty(40, np.uint8)
    for i in range(50):
        assert file.read(i, into)
        assert (into == i).all()


# --- plan ------------------------------------------------------------------------------------------------------------


def plan_of(distiller, **options):
    adversary = distiller.adversary
    return make_plan(
        distiller.student,
        distiller.source,
        torch.rand(2, 3, 64, 96),
        activation="none" if adversary is None else adversary.discriminator.activation,
        mask=distiller.mask,
        **options,
    )


def test_what_is_stored_is_what_is_compared_and_each_map_once():
    # The teacher's logits have the image's size, the student's an eighth; the discriminator sees pixel-wise's map.
    plan = plan_of(make_distiller())
    assert [kept.storage.shape for kept in plan.kept] == [(5, 8, 12), (256, 4, 6)]
    assert plan.levels == {"pixel_wise": [0], "pair_wise": [1]}
    assert plan.holistic == 0
    assert plan.nbytes == 2 * (5 * 8 * 12 + 256 * 4 * 6) + 8
    assert "PairWise-4x6-fp16" in str(plan)


def test_files_have_the_same_names_for_any_subset_of_terms():
    """An ablation's runs find each other's records."""
    full = make_distiller()
    part = make_distiller(holistic=False, terms=full.terms[:1])
    assert plan_of(part).kept[0].name == plan_of(full).kept[0].name
    coarse = make_distiller(
        terms=[full.terms[0], Term("pair_wise", PairWise(granularity=4), 10.0, "b3", "b3")]
    )
    names = [kept.name for kept in plan_of(coarse).kept]
    assert names[0] == plan_of(full).kept[0].name
    assert names[1] != plan_of(full).kept[1].name


def test_top_k_is_of_class_maps_that_are_seen_through_a_softmax():
    plan = plan_of(make_distiller(), storage="top_k", top_k=2)
    assert [type(kept.storage) for kept in plan.kept] == [TopK, Int8]
    with pytest.raises(UserError, match="5 of 5 classes"):
        plan_of(make_distiller(), storage="top_k", top_k=5)
    other = make_distiller(terms=[Term("pixel_wise", PixelWise(form="sigmoid"))])
    with pytest.raises(UserError, match=r"pixel_wise sees .* int8"):
        plan_of(other, storage="top_k", top_k=2)
    with pytest.raises(ValueError, match="fp8"):
        plan_of(make_distiller(), storage="fp8")


@pytest.mark.parametrize(("size", "stored"), [((16, 24), (16, 24)), ((80, 96), (64, 96))])
def test_a_loss_that_compares_at_a_size_of_its_own(tmp_path, size, stored):
    batch = keyed(make_batch(2))
    distiller = make_distiller(
        holistic=False, terms=[Term("pixel_wise", PixelWise(size=size), 1.0)]
    )
    live, _ = distiller.student_phase(batch)
    distiller = cached(distiller, tmp_path)
    assert distiller.source.plan.kept[0].size == stored
    again, _ = distiller.student_phase(batch)
    assert again["distill/pixel_wise"].item() == pytest.approx(
        live["distill/pixel_wise"].item(), rel=1e-3
    )


def test_levels_that_differ_are_named():
    distiller = make_distiller(holistic=False)
    task = copy.copy(distiller.task)
    task.map = lambda output, name="prediction": (
        [output.prediction] * (2 if output.prediction.shape[-1] == 96 else 1)
    )
    distiller.task = distiller.source.task = task
    with pytest.raises(ValueError, match="compare as many"):
        plan_of(distiller)


# --- the distiller's teacher -----------------------------------------------------------------------------------------


def keyed(batch, first=0, epoch=0):
    batch.keys = [(epoch, first + i) for i in range(len(batch))]
    batch.targets[0, :20, :20] = 255
    return batch


def cached(distiller, folder, *, images=8, identity=None, **options):
    disk_gb = options.pop("disk_gb", 1.0)
    cache = TeacherCache(
        distiller.source,
        plan_of(distiller, **options),
        folder=folder,
        identity=identity or {"teacher": "a"},
        images=images,
        epochs=2,
        disk_gb=disk_gb,
    )
    return distiller.with_source(cache)


class Silent(nn.Module):
    """A teacher that must not be asked."""

    dtype = None

    def forward(self, images, prediction=True):
        raise AssertionError("the teacher was asked")


def losses_of(distiller, batch):
    distiller.student.zero_grad()
    if distiller.adversary is not None:
        distiller.adversary.network.eval()  # no power iteration between two calls
    losses, maps = distiller.student_phase(batch)
    sum(losses.values()).backward()
    gradient = torch.cat([p.grad.flatten() for p in distiller.student.parameters()])
    return losses, maps, gradient


# form -> how far a term's value (relative) and the gradient's direction may go
LOOSE = {"fp16": (2e-3, 1e-5), "int8": (3e-2, 1e-3), "top_k": (3e-1, 3e-2)}


@pytest.mark.parametrize("form", LOOSE)
@pytest.mark.parametrize("holistic", [True, False])
def test_a_stored_teacher_teaches_as_the_live_one(tmp_path, form, holistic):
    batch = keyed(make_batch(3))
    live, _, wanted = losses_of(make_distiller(holistic=holistic), batch)
    distiller = cached(make_distiller(holistic=holistic), tmp_path, storage=form)
    value, direction = LOOSE[form]
    missed, maps, gradient = losses_of(distiller, batch)
    assert list(missed) == list(live)
    for name in live:
        assert missed[name].item() == pytest.approx(live[name].item(), rel=value, abs=1e-4), name
    assert 1 - torch.cosine_similarity(gradient, wanted, dim=0) < direction

    # A hit is the miss bit for bit, and needs no teacher.
    distiller.source.source.teacher = Silent()
    hit, again, same = losses_of(distiller, batch)
    assert all(torch.equal(hit[name], missed[name]) for name in hit)
    assert torch.equal(same, gradient)
    if holistic:
        assert torch.equal(maps.teacher, again.teacher)
        assert torch.equal(maps.mask, again.mask)


def test_a_record_does_not_depend_on_the_batch_it_came_in(tmp_path):
    batch = keyed(make_batch(4))
    one, two = (
        cached(make_distiller(), tmp_path / name, identity={"n": name}) for name in ("a", "b")
    )
    one.student_phase(batch)
    for part in ([0], [3, 1], [2]):
        some = copy.copy(batch)
        for name in ("images", "targets", "labelled", "inside"):
            setattr(some, name, getattr(batch, name)[part])
        some.names = [batch.names[i] for i in part]
        some.keys = [batch.keys[i] for i in part]
        two.student_phase(some)
    for a, b in zip(one.source.files, two.source.files, strict=True):
        assert a.path.read_bytes() == b.path.read_bytes()


@pytest.mark.parametrize("form", ["fp16", "int8"])
def test_what_is_not_finite_is_not_stored(tmp_path, form):
    distiller = cached(make_distiller(holistic=False), tmp_path, storage=form)
    batch = make_batch(2)
    batch.keys = [(0, 0), (0, 1)]
    batch.images[1] = torch.nan
    with pytest.raises(UserError, match="NaN or infinity"):
        distiller.source.maps(batch, None)
    assert distiller.source.filled == 0


def test_only_what_is_missing_is_asked_for(tmp_path):
    distiller = cached(make_distiller(), tmp_path)
    asked = []
    teacher = distiller.teacher
    teacher.register_forward_pre_hook(lambda _, args: asked.append(len(args[0])))
    distiller.student_phase(keyed(make_batch(2)))
    assert asked == [1, 1]
    assert distiller.source.filled == 2 / 16
    distiller.student_phase(keyed(make_batch(4)))
    assert sum(asked) == 4
    # the same images in the next epoch of the augmentation are others
    distiller.student_phase(keyed(make_batch(2), epoch=1))
    assert sum(asked) == 6
    # and a sample without a key is nobody's
    batch = make_batch(2)
    batch.keys = [None, (0, 0)]
    distiller.student_phase(batch)
    assert sum(asked) == 7
    assert distiller.source.filled == 6 / 16


def test_a_map_that_only_another_run_needed_is_not_asked_for_again(tmp_path):
    first = make_distiller(holistic=False, terms=make_distiller().terms[:1])
    first = cached(first, tmp_path)
    first.student_phase(keyed(make_batch(2)))
    stored = first.source.files[0].path.read_bytes()
    full = cached(make_distiller(), tmp_path)
    assert full.source.filled == 0  # the nodes are missing
    full.student_phase(keyed(make_batch(2)))
    assert full.source.filled == 2 / 16
    assert first.source.files[0].path.read_bytes() == stored


def test_other_teachers_and_data_have_other_folders(tmp_path):
    one = cached(make_distiller(), tmp_path, identity={"teacher": "a"}).source
    two = cached(make_distiller(), tmp_path, identity={"teacher": "b"}).source
    assert one.folder != two.folder
    assert json.loads((one.folder / "about.json").read_text())["teacher"] == "a"
    assert [p.name for p in one.folder.glob("tmp*")] == []


def test_a_stale_record_is_refused(tmp_path):
    distiller = cached(make_distiller(), tmp_path)
    batch = keyed(make_batch(3))
    mask = distiller.task.mask(batch, "label")
    assert distiller.source.check(batch, mask) == 0  # nothing there
    distiller.student_phase(batch)
    assert distiller.source.check(batch, mask) == 3
    with pytest.raises(UserError, match=r"image 0 .*stale.*Delete that folder") as caught:
        distiller.source.check(batch, ~mask)  # nodes pooled under another mask
    assert str(distiller.source.folder) in str(caught.value)
    with torch.no_grad():
        for parameter in distiller.teacher.parameters():
            parameter.mul_(1.05)
    with pytest.raises(UserError, match="stale"):
        distiller.source.check(batch, mask)


@pytest.mark.parametrize("form", LOOSE)
def test_a_fresh_store_passes_its_check(tmp_path, form):
    distiller = cached(make_distiller(), tmp_path, storage=form)
    batch = keyed(make_batch(3))
    distiller.student_phase(batch)
    assert distiller.source.check(batch, distiller.task.mask(batch, "label")) == 3


def test_a_store_that_is_too_large_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"8 images × 2 epochs = 16 records × .*disk_gb` 1e-06"):
        cached(make_distiller(), tmp_path / "a", disk_gb=1e-6)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("densekd.distill.stored.store.shutil.disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"1 kB free: take fewer `epochs`"):
        cached(make_distiller(), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_confidence_and_levels_are_stored(tmp_path):
    """Feature mimic weighs places by the teacher's confidence."""

    distiller = make_distiller(
        holistic=False, terms=[Term("mimic", FeatureMimic(), 0.1, "b3", "b3")]
    )
    batch = keyed(make_batch(2))
    live, _ = distiller.student_phase(batch)
    distiller = cached(distiller, tmp_path)
    assert [kept.storage.shape for kept in distiller.source.plan.kept] == [
        (256, 8, 12),
        (1, 8, 12),
    ]
    stored, _ = distiller.student_phase(batch)
    assert stored["distill/mimic"].item() == pytest.approx(live["distill/mimic"].item(), rel=1e-3)


def test_the_samples_of_two_sets_have_places_of_their_own(tmp_path):
    source = cached(make_distiller(), tmp_path, images=(5, 3)).source
    keys = [SampleKey(e, i, s) for s, count in ((0, 5), (1, 3)) for e in range(2) for i in range(count)]  # fmt: skip
    batch = make_batch(2)
    batch.keys = [*keys, None]
    assert source._places(batch) == [*range(16), None]
    assert source.records == 16
    batch.keys = [SampleKey(0, 0, 2)]
    with pytest.raises(ValueError, match="set with the number 2, and the store was made for 2"):
        source.maps(batch, None)


def test_the_store_of_one_set_knows_no_second(tmp_path):
    source = cached(make_distiller(), tmp_path).source
    batch = make_batch(2)
    batch.keys = [SampleKey(0, 0), SampleKey(0, 0, 1)]
    with pytest.raises(ValueError, match="give images= the size of each set"):
        source.maps(batch, None)
