"""Networks of Hugging Face transformers from a folder: ``{name: hf, options: {path: FOLDER}}``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from torch import nn

from densekd.errors import UserError, WeightsError
from densekd.models.foreign._package import declare, package
from densekd.ops.files import read_object
from densekd.ops.names import first_few
from densekd.types import InputSpec

# What a class of transformers predicts, by the end of its name or by its name.
MAPS = (
    "ForSemanticSegmentation",
    "Mask2FormerForUniversalSegmentation",
    "MaskFormerForInstanceSegmentation",
)
DEPTH = ("ForDepthEstimation",)
# Sets of boxes whose classes are a yes or no each; DETR's own softmax is another form.
SETS = (
    "RTDetrForObjectDetection",
    "RTDetrV2ForObjectDetection",
    "DFineForObjectDetection",
    "DeformableDetrForObjectDetection",
)
# Class -> the default tap, where one module gives a map or the levels of a pyramid.
TAPS = {
    "SegformerForSemanticSegmentation": "decode_head.activation",
    "UperNetForSemanticSegmentation": "decode_head.fpn_bottleneck",
    "DPTForSemanticSegmentation": "head.head.2",
    "DPTForDepthEstimation": "head.head.0",
    "DepthAnythingForDepthEstimation": "head.conv1",
    "Mask2FormerForUniversalSegmentation": "model.pixel_level_module.decoder:mask_features",
    "MaskFormerForInstanceSegmentation": "model.pixel_level_module.decoder:last_hidden_state",
    "RTDetrForObjectDetection": "model.encoder:last_hidden_state.*",
    "RTDetrV2ForObjectDetection": "model.encoder:last_hidden_state.*",
    "DFineForObjectDetection": "model.encoder:last_hidden_state.*",
}
# Class -> what its depth is, where every file of the class agrees.
METRIC = (
    "GLPNForDepthEstimation",
    "ZoeDepthForDepthEstimation",
    "DepthProForDepthEstimation",
)


def hf(
    num_classes: int,
    *,
    path: str,
    weights: bool | None = True,
    depth: Literal["metric", "inverse"] | None = None,
) -> nn.Module:
    """The library's own network, so that what is saved loads there with ``strict=True``. Nothing is downloaded.

    Args:
        path: a folder that ``save_pretrained`` wrote, or a repository's folder: config.json, model.safetensors, and
            preprocessor_config.json where there is one.
        weights: load the folder's weights; false builds the network of its config.json at random.
        depth: what a depth network gives: metres, or inverse depth without scale and shift (MiDaS, DPT, Depth
            Anything); null: as its config.json says, where it does.

    Weights of another number of classes keep all but their classifier, which begins at random. Detectors of sets keep
    their own number.
    """
    library: Any = package("transformers", "transformers", "hf")
    folder = Path(path).expanduser()
    about = read_json(folder / "config.json")
    names = about.get("architectures") or []
    name = names[0] if names else ""
    kind = getattr(library, name, None)
    if kind is None or not name.endswith((*MAPS, *DEPTH, *SETS)):
        raise UserError(
            f"{folder}/config.json is of {name or 'no class'}; expected a ...ForSemanticSegmentation of transformers, "
            f"a ...ForDepthEstimation, or one of {', '.join([*MAPS[1:], *SETS])}"
        )
    config = library.AutoConfig.from_pretrained(folder, local_files_only=True)
    trained = None if name.endswith(DEPTH) else config.num_labels
    if name.endswith(SETS):
        num_classes = config.num_labels  # a teacher by its features, whose classes nobody reads
    elif trained not in (None, num_classes):
        config.num_labels = num_classes
    if weights:
        try:
            with quiet(library):
                network = kind.from_pretrained(
                    folder, config=config, local_files_only=True, ignore_mismatched_sizes=True
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{folder}: {error}") from error
        network.trained_classes = trained
    else:
        network = kind(config)
    if name.endswith(DEPTH):
        network.gives_depth = depth or depth_of(network)
    elif depth is not None:
        raise UserError(f"depth is {depth} and {name} gives none; leave it out")
    return declare(network, input_spec(folder), num_classes, TAPS.get(name))


@contextmanager
def quiet(library: Any) -> Iterator[None]:
    """Without transformers' bars and reports inside; they tell a user nothing that is to be done."""
    log = library.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def depth_of(network: Any) -> str | None:
    """``"metric"``, ``"inverse"``, or None where the class and its config.json leave it open (DPT)."""
    name = type(network).__name__
    if name in METRIC:
        return "metric"
    kind = getattr(network.config, "depth_estimation_type", None)
    return {"relative": "inverse", "metric": "metric", None: None}.get(kind)


def adopt(network: Any, source: object) -> None:
    """Give what some ``Class.from_pretrained`` built the attributes that ours have, where they are known.

    Args:
        source: what it was built from; a folder says what the network wants to see.
    """
    name = type(network).__name__
    if name in TAPS and not hasattr(network, "pair_wise_tap"):
        network.pair_wise_tap = TAPS[name]
    if name.endswith(DEPTH) and hasattr(network, "config"):
        network.gives_depth = depth_of(network)
    if isinstance(source, str) and (Path(source) / "preprocessor_config.json").is_file():
        network.input_spec = input_spec(Path(source))


def fill(network: Any, folder: str) -> None:
    """The weights of a folder of ``save_pretrained``, whose keys may be older names than the network's own.

    Raises:
        WeightsError: they do not fit.
    """
    library: Any = package("transformers", "transformers", "hf")
    try:
        with quiet(library):
            loaded, report = type(network).from_pretrained(
                folder, config=network.config, local_files_only=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{folder}: {error}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise WeightsError(f"{folder}: has no weights for {first_few(missing)}")
    network.load_state_dict(loaded.state_dict())


def class_count(source: str) -> int | None:
    """How many classes a folder's network was trained for; None where the folder does not say."""
    file = Path(source).expanduser() / "config.json"
    if not file.is_file():
        return None
    about = read_json(file)
    names = about.get("id2label")
    # transformers leaves its own default, two classes, out of the file.
    default = 2 if "model_type" in about else None
    return len(names) if names else about.get("num_labels", default)


def read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except UserError as error:
        if path.exists():
            raise
        raise UserError(
            f"{path}: no such file; give a folder that save_pretrained wrote"
        ) from error


def input_spec(folder: Path) -> InputSpec:
    """Of preprocessor_config.json; ImageNet's mean and std where there is none."""
    file = folder / "preprocessor_config.json"
    about = read_json(file) if file.is_file() else {}
    largest = 1.0 if about.get("do_rescale", True) else 255.0
    if not about.get("do_normalize", True):
        return InputSpec(mean=(0.0,) * 3, std=(1.0,) * 3, range=largest)
    spec = InputSpec()
    return InputSpec(
        mean=about.get("image_mean", spec.mean),
        std=about.get("image_std", spec.std),
        range=largest,
    )
