from __future__ import annotations

import pytest

from densekd.build.settings import in_settings, naming_settings
from densekd.errors import DataError

NAMES = {"root": "data.root", "folder=None": "data.cache: ram"}


def test_arguments_become_settings():
    assert in_settings("Check `root`, or `densekd data check`.", NAMES) == (
        "Check data.root, or `densekd data check`."
    )
    assert in_settings("take `folder=None`", NAMES, "data.cache") == (
        "data.cache: take data.cache: ram"
    )


def test_an_error_stays_what_it_is():
    """Its class, what it carries and where it was raised: the launcher asks for all of them."""
    error = DataError("check `root`")
    error.one_rank = True
    with pytest.raises(DataError, match=r"^check data\.root$") as caught, naming_settings(NAMES):
        raise error
    assert caught.value is error
    assert caught.value.one_rank
    with pytest.raises(ZeroDivisionError, match="division"), naming_settings(NAMES, "data"):
        _ = 1 / 0
