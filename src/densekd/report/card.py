"""The model card of a trained network: Markdown made of what its weights file and its run say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from densekd.config.forms import teachers_of

# Task -> what the hub calls it.
PIPELINES = {
    "segmentation": "image-segmentation",
    "detection": "object-detection",
    "depth": "depth-estimation",
}
SHARES = ("miou", "pixel_accuracy", "ap", "ap50", "ap75")  # scores that people read in %
PROSE = {
    "abs_rel": "AbsRel",
    "rmse": "RMSE",
    "miou": "mIoU",
    "ap": "AP",
    "pixel_accuracy": "pixel accuracy",
}


@dataclass(frozen=True)
class Origin:
    """What a run folder says of a network; empty where the network came as a lone file.

    Attributes:
        config: the recipe's tree, as config.yaml has it.
        result: result.json.
        teacher: result.json of the teacher's run, where its weights lie in one.
        alone: result.json of a run of the same student, data and steps without a teacher.
    """

    config: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None
    teacher: Mapping[str, Any] | None = None
    alone: Mapping[str, Any] | None = None

    @property
    def distilled(self) -> bool:
        return bool(teachers_of(self.config or {}))


def model_card(
    about: Mapping[str, Any], origin: Origin, *, name: str, license: str | None = None
) -> str:
    """The text of README.md.

    Args:
        about: what the weights file says of its network.
        name: the repository's id or the folder, for the lines that load it.
        license: the licence of these weights, by its name on the hub (``"apache-2.0"``); None says that none is given.
    """
    network = short_name(about["model"]["name"])
    teachers = [short_name(t["name"]) for t in teachers_of(origin.config or {}).values()]
    teacher = " and ".join(teachers) or None
    title = f"{network} distilled from {teacher}" if teacher else network
    head = {
        "library_name": "densekd",
        "pipeline_tag": PIPELINES.get(about["task"]),
        "license": license,
        "tags": [
            "densekd",
            "pytorch",
            about["task"],
            *(["knowledge-distillation"] if teacher else []),
        ],
    }
    use = USES.get(about["task"], 'answer = network.predict("{}")')
    front = yaml.safe_dump({k: v for k, v in head.items() if v is not None}, sort_keys=False)
    parts = [
        f"---\n{front}---",
        f"# {title}",
        first_sentence(about, network, teacher, origin),
        "## Use\n\n```sh\npip install densekd\n```\n\n```python\nimport densekd\n\n"
        f'network = densekd.load("{name}")\n'
        f"{use.format('image.jpg')}\n```",
        scores_section(origin),
        making_section(about, origin),
        input_section(about),
        limits_section(about, origin),
        licence_section(license, origin),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


USES = {
    "segmentation": 'classes = network.predict("{}")  # (H, W): the class of each pixel; names: network.classes',
    "detection": 'found = network.predict("{}")  # boxes (m, 4) XYXY in pixels, scores (m,), labels (m,)',
    "depth": 'metres = network.predict("{}")  # (H, W) float32',
}


def short_name(name: str) -> str:
    """``espnet`` of ``espnet``, ``Net`` of ``object:my_pkg.Net``."""
    return name.rpartition(".")[2].rpartition(":")[2]


def first_sentence(
    about: Mapping[str, Any], network: str, teacher: str | None, origin: Origin
) -> str:
    parameters = (origin.result or {}).get("parameters")
    size = "" if parameters is None else f" ({number(parameters, 1e6)} M parameters)"
    classes = f" of {len(about['classes'])} classes" if about["classes"] else ""
    how = f", trained with knowledge distillation from {teacher}" if teacher else ""
    return f"The network `{network}`{size}, for {about['task']}{classes}{how}."


def scores_section(origin: Origin) -> str:
    """A table: teacher, student alone, this network; and the classes' own scores."""
    if not origin.result or not origin.result.get("scores"):
        return "## Scores\n\nNo score is known: the network came without its run."
    own = origin.result
    rows = [("teacher", origin.teacher), ("student alone", origin.alone)]
    rows = [(label, result) for label, result in rows if result and result.get("scores")]
    rows.append(("**this network**", own))
    counts = ("images", "pixels")
    names = [
        k for k, v in own["scores"].items() if isinstance(v, (int, float)) and k not in counts
    ][:4]
    lines = [
        f"| network | {' | '.join(metric_name(n) for n in names)} | parameters (M) | MACs (G) |",
        f"| --- | {' | '.join('---:' for _ in names)} | ---: | ---: |",
    ]
    for label, result in rows:
        values = [shown(n, result["scores"].get(n)) for n in names]
        lines.append(
            f"| {label} | {' | '.join(values)} | {number(result.get('parameters'), 1e6)} | "
            f"{number(result.get('macs'), 1e9)} |"
        )
    size = own.get("macs_size")
    text = f"Scored on the split `{own.get('split')}`" + (
        f"; MACs at {size[0]}×{size[1]}." if size else "."
    )
    if own.get("note"):
        text += f" Note: {own['note']}."
    if origin.distilled and not origin.alone:
        text += " The student's score without a teacher is not known."
    parts = ["## Scores", text, "\n".join(lines)]
    per_class = own["scores"].get("iou")
    if isinstance(per_class, Mapping):
        parts.append(
            "\n".join(
                ["| class | IoU (%) |", "| --- | ---: |"]
                + [f"| {name} | {shown('miou', value)} |" for name, value in per_class.items()]
            )
        )
    return "\n\n".join(parts)


def metric_name(key: str) -> str:
    return PROSE.get(key, key) + (" (%)" if key in SHARES else "")


def shown(key: str, value: Any) -> str:
    if not isinstance(value, (int, float)):
        return "–"
    return f"{100 * value:.2f}" if key in SHARES else f"{value:.4f}"


def number(value: Any, unit: float) -> str:
    return f"{value / unit:.3f}" if isinstance(value, (int, float)) else "–"


def weight_text(weight: Any) -> str:
    return f"{weight:g}" if isinstance(weight, (int, float)) else str(weight)


def making_section(about: Mapping[str, Any], origin: Origin) -> str:
    if not origin.config:
        return f"## How it was made\n\nBy densekd {about.get('version', '')}; the file does not say how."
    config, result = origin.config, origin.result or {}
    data, optim, train = config["data"], config["optim"], config["train"]
    lines = [
        f"- Data: `{data['dataset']}`, split `{data['train_split']}`, crops of {data['crop'] or 'whole images'}.",
        f"- Training: {result.get('step', train['steps'])} steps of {data['batch_size'] * train['accumulate']} images "
        f"a process, {optim['name']} with learning rate {optim['lr']:g}, seed {config['seed']}.",
    ]
    if origin.distilled:
        terms = {
            k: t for k, t in config["distill"].items() if isinstance(t, dict) and "weight" in t
        }
        lines += [
            *(
                f"- Teacher: `{t['name']}` {t['options'] or ''}".rstrip() + "."
                for t in teachers_of(config).values()
            ),
            "- Distillation terms: "
            + ", ".join(
                f"{name} (weight {weight_text(term['weight'])})" for name, term in terms.items()
            )
            + ".",
        ]
    lines.append(
        f"- Made with densekd {about.get('version', '')}; config.json has the network and its options."
    )
    return "## How it was made\n\n" + "\n".join(lines)


def input_section(about: Mapping[str, Any]) -> str:
    spec = about["input"]
    lines = [
        f"`densekd.load` normalises by itself. The bare network wants {spec.get('order', 'rgb').upper()} images with "
        f"values from 0 to {spec.get('range', 1.0):g}, minus {spec['mean']}, over {spec['std']}.",
    ]
    if about["classes"]:
        lines.append(f"Classes in index order: {', '.join(about['classes'])}.")
    return "## Input and classes\n\n" + "\n\n".join(lines)


def limits_section(about: Mapping[str, Any], origin: Origin) -> str:
    data = f" (`{origin.config['data']['dataset']}`)" if origin.config else ""
    lines = [
        f"- It knows images like those it was trained on{data}; on others its answers can be wrong without a sign.",
        "- It has not been tested for use where a wrong answer does harm.",
    ]
    if origin.distilled:
        lines.append(
            "- It can have taken over its teacher's errors and the bias of the teacher's data."
        )
    if about.get("note"):
        lines.append(f"- {about['note']}.")
    return "## Limits\n\n" + "\n".join(lines)


def licence_section(license: str | None, origin: Origin) -> str:
    given = (
        f"These weights are given under {license}."
        if license
        else "No licence is given for these weights; ask whoever trained them."
    )
    also = ", and its teacher's weights," if origin.distilled else ""
    return (
        f"## Licence\n\n{given} The data it was trained on{also} have licences of their own, which may not allow every "
        "use. The code of densekd is under Apache-2.0."
    )
