"""The rows of an ablation: one student on one budget with more and more terms, or over the values of one setting."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from densekd.build.task import check_task
from densekd.config.load import make_config, to_tree
from densekd.config.schema import Config
from densekd.config.tree import apply_overrides, parse_yaml
from densekd.errors import UserError

SHORT = {"pixel_wise": "Pi", "pair_wise": "Pa", "holistic": "Ho", "feature_mimic": "Mimic"}
ORDER = ["pixel_wise", "pair_wise", "holistic"]  # the paper's; other terms follow as written

FEW = ("labelled", "labelled_every")  # readers' options that withhold labels


@dataclass
class Variant:
    """A row of the table."""

    key: str  # folder name
    title: str
    config: Config
    distil: bool


def term_variants(config: Config) -> list[Variant]:
    """Student alone, then one term more a row: the paper's table.

    Where labels are withheld (`few_labels`), the last row is the student alone with all of them.
    """
    names = [*config.distill.terms, *(["holistic"] if config.distill.holistic else [])]
    if not names:
        raise UserError(
            "distill: no term to ablate; add pixel_wise, pair_wise or holistic with a weight"
        )
    names.sort(key=lambda n: ORDER.index(n) if n in ORDER else ORDER.index("pair_wise") + 0.5)
    variants = [Variant("student", "student alone", _labelled_only(config), distil=False)]
    for count in range(1, len(names) + 1):
        used = names[:count]
        tree = to_tree(config)
        for name in names[count:]:
            tree["distill"][name] = None
        shorts = [SHORT.get(n, n) for n in used]
        variants.append(
            Variant(
                "_".join(s.lower() for s in shorts),
                " ".join(f"+{s}" for s in shorts),
                make_config(tree, "ablate"),
                distil=True,
            )
        )
    if few_labels(config):
        variants.append(
            Variant("student_all", "student alone, all labels", _all_labels(config), distil=False)
        )
    return variants


def few_labels(config: Config) -> dict[str, Any]:
    """The options by which the training set keeps the labels of some images only; empty where it keeps all."""
    return {key: value for key, value in config.data.train_options.items() if key in FEW}


def _labelled_only(config: Config) -> Config:
    """Alone, a student learns nothing from images whose labels are withheld: they are left out."""
    if not few_labels(config):
        return config
    return replace(config, data=replace(config.data, allow_unlabelled=False))


def _all_labels(config: Config) -> Config:
    """The same with the labels that are withheld: what they would have been worth."""
    options = {k: v for k, v in config.data.train_options.items() if k not in FEW}
    return replace(config, data=replace(config.data, train_options=options, allow_unlabelled=False))


def setting_variants(config: Config, over: str, distil: bool) -> list[Variant]:
    """One row a value of ``KEY=a,b,c``."""
    key, equals, text = over.partition("=")
    if not equals or not text:
        raise UserError(
            f"--over {over!r}: expected KEY=value,value, e.g. distill.pair_wise.granularity=1,2,4"
        )
    if key in ("seed", "note", "data.val_split") or key.startswith(("teacher.", "teachers.")):
        raise UserError(
            f"--over {key}: all rows of a table share it; "
            + ("use --seeds N" if key == "seed" else "run one ablation for each value")
        )
    values = parse_yaml(f"[{text}]", "--over")
    for i, value in enumerate(values):
        if repr(value) in map(repr, values[:i]):  # 1 and 1.0 are different granularities
            raise UserError(f"--over {over!r}: the value {value!r} stands twice")
    variants = []
    for value in values:
        tree = deepcopy(to_tree(config))
        apply_overrides(tree, {key: value})
        safe = "".join(c if c.isalnum() or c in ".-" else "_" for c in str(value))
        title = f"{key} = {value}"
        variant = make_config(tree, f"--over {key}")
        check_task(variant.task)
        variants.append(Variant(f"{key}={safe}", title, variant, distil))
    return variants
