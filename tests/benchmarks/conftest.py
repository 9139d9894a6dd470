"""One way to run a script: tiny, on the CPU, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

PAIR = ("--case", "espnet_c_from_espnet")


@pytest.fixture
def dry(tmp_path, capsys) -> Callable[..., tuple[dict[str, Any], str]]:
    """Call it with a script and options: the record that the script wrote, and what it printed."""

    def run(script: ModuleType, *words: str) -> tuple[dict[str, Any], str]:
        path = tmp_path / "record.json"
        arguments = ["--dry", "--device", "cpu", "--output", str(path), *words]
        assert script.main(arguments) == 0
        printed = capsys.readouterr().out
        assert f"written to {path}" in printed
        with pytest.raises(SystemExit, match="exists"):  # before anything is measured again
            script.main(arguments)
        return json.loads(path.read_text()), printed

    return run
