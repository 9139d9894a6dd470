"""What networks return, ours and foreign ones, and where the prediction is in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from densekd.errors import UserError
from densekd.types import DetectorOutput, SetPrediction

FLOOR = 1e-13  # the least probability of a class, so that its logarithm is finite


def find_prediction(raw: Any) -> tuple[Any, Tensor | None]:
    """The prediction and the auxiliary prediction in what a network returned.

    Known are a tensor; a `DetectorOutput`; a mapping with ``out`` (and ``aux``), as torchvision returns; objects of
    transformers with ``logits``, ``predicted_depth``, class and mask queries (see `query_classes`), or ``pred_boxes``
    (a `SetPrediction`); and a tuple or list, whose first element is taken.
    """
    if isinstance(raw, Tensor | DetectorOutput | SetPrediction):
        return raw, None
    if isinstance(raw, Mapping) and "out" in raw:
        return raw["out"], raw.get("aux")
    masks, depth = entry(raw, "masks_queries_logits"), entry(raw, "predicted_depth")
    logits, boxes = entry(raw, "logits"), entry(raw, "pred_boxes")
    if masks is not None:
        return query_classes(entry(raw, "class_queries_logits"), masks), None
    if depth is not None:
        return (depth[:, None] if depth.ndim == 3 else depth), None
    if logits is not None and boxes is not None:
        return SetPrediction(logits, boxes), None
    if logits is not None:
        return logits, None
    if isinstance(raw, tuple | list) and raw and isinstance(raw[0], Tensor):
        return raw[0], None
    raise UserError(
        f"the network returns {describe(raw)}; expected a tensor, a mapping with 'out', an object with .logits, or a "
        "list that starts with a tensor. Say where the prediction is: Taps(..., prediction='path.into.it'), in a "
        "recipe model.prediction or teacher.prediction"
    )


def entry(raw: Any, name: str) -> Tensor | None:
    """A tensor of an object or a mapping; None where there is none."""
    value = getattr(raw, name, None)
    if value is None and isinstance(raw, Mapping):
        value = raw.get(name)
    return value if isinstance(value, Tensor) else None


def query_classes(classes: Tensor | None, masks: Tensor) -> Tensor:
    """The logarithms of class probabilities (N, K, h, w) of a network that predicts classes and masks of queries.

    A class's score is the sum over queries of its probability times the mask's, without the class of nothing, as
    MaskFormer (Cheng et al., NeurIPS 2021, section 3.4) infers semantics; the scores of a pixel are made to sum to 1.

    Args:
        classes: (N, Q, K + 1) logits; the last class is that of nothing.
        masks: (N, Q, h, w) logits.
    """
    if classes is None:
        raise UserError("the network gives masks of queries and no class_queries_logits for them")
    probabilities = classes.float().softmax(-1)[..., :-1]
    scores = torch.einsum("nqc,nqhw->nchw", probabilities, masks.float().sigmoid())
    return (scores / scores.sum(1, keepdim=True).clamp(min=FLOOR)).clamp(min=FLOOR).log()


def holds(raw: Any, path: str) -> bool:
    """Whether the first part of a path leads into what a network returned."""
    first = path.split(".")[0]
    if isinstance(raw, Tensor):
        return False
    if isinstance(raw, Mapping):
        return first in raw
    if isinstance(raw, Sequence):
        return first.isdigit()
    return hasattr(raw, first)


def follow(value: Any, where: str, who: str) -> Any:
    """Go into a container by keys, positions or attributes joined by dots."""
    for part in where.split(".") if where else []:
        try:
            if isinstance(value, Mapping):
                # Feature pyramids of torchvision have the keys "0", "1", … as well as "pool".
                value = value[part] if part in value else value[int(part)]
            elif isinstance(value, Sequence):
                value = value[int(part)]
            else:
                value = getattr(value, part)
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            raise UserError(f"{who}: no {part!r} in {describe(value)}") from error
    return value


def describe(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with keys {', '.join(map(str, value))}"
    if isinstance(value, Sequence):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def example(value: Any) -> str:
    return str(next(iter(value))) if isinstance(value, Mapping) and value else "0"
