"""Makes src/densekd/config/models.json, what `densekd list models` says of each network without building it.

    PYTHONPATH=src python docs/make_model_table.py

A test fails while the file says other things than the networks.
"""

from __future__ import annotations

import json

from densekd.workflows.lists import FACTS, list_models

KEYS = ("parameters", "tap", "stride", "required", "pretrained")


def table() -> str:
    rows = list_models(details=True)
    facts = {row.name: {key: getattr(row, key) for key in KEYS} for row in rows}
    lines = [f"  {json.dumps(name)}: {json.dumps(fact)}" for name, fact in facts.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    FACTS.write_text(table(), encoding="utf-8")
