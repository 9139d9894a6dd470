"""What a builder takes, however its signature says so."""

from __future__ import annotations

from typing import TypedDict, Unpack

import pytest

from densekd.build.resolve import accepts, call, parameters, resolve
from densekd.config.names import DATASETS
from densekd.data import CamVid, PairedFiles
from densekd.errors import UserError


class More(TypedDict, total=False):
    first: int
    second: int | None


class Packed:
    def __init__(self, root: str, *, own: int = 0, **more: Unpack[More]) -> None:
        self.given = (root, own, more)


class Plain(PairedFiles):
    """A reader that lists its parameters, as a user's may."""

    def __init__(self, root: str, split: str = "train", *, verify_files: bool = True) -> None:
        self.given = (root, split, verify_files)


def anything(root: str, **rest: int) -> dict:
    return {"root": root, **rest}


def test_options_by_name():
    assert list(parameters(Packed)) == ["root", "own", "first", "second"]
    assert [p.name for p in parameters(Packed).values() if p.default is p.empty] == ["root"]
    assert list(parameters(Plain)) == ["root", "split", "verify_files"]
    assert list(parameters(anything)) == ["root", "rest"]


def test_what_is_accepted():
    assert accepts(Packed, "second")
    assert not accepts(Packed, "more")
    assert not accepts(Packed, "third")
    assert not accepts(Plain, "allow_unlabelled")
    assert accepts(anything, "third")


def test_a_call_passes_them_and_names_the_nearest():
    assert call(Packed, {"first": 1}, "x", root="r", absent=3).given == ("r", 0, {"first": 1})
    with pytest.raises(UserError, match=r"x\.secnd: unknown option; did you mean 'second'"):
        call(Packed, {"secnd": 1}, "x", root="r")


def test_annotations_that_cannot_be_evaluated():
    def builder(root: Nowhere, **rest: Nowhere) -> None:  # noqa: F821
        """As under TYPE_CHECKING."""

    assert accepts(builder, "whatever")


@pytest.mark.parametrize("name", ["camvid", "idd_lite", "nyuv2", "kitti", "depth_folder"])
def test_readers_of_file_pairs_take_the_same_options(name):
    reader = resolve(name, DATASETS, "data.dataset")
    for option in ("channels", "allow_unlabelled", "verify_files", "labelled"):
        assert accepts(reader, option)
    assert not accepts(reader, "files")


def test_a_misspelt_option_of_a_reader():
    with pytest.raises(UserError, match="did you mean 'labelled'"):
        call(CamVid, {"labeled": 4}, "data.options", root="x")
