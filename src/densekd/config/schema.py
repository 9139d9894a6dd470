"""Every setting, as plain dataclasses. The comments behind the fields become docs/config.md
(docs/make_config_reference.py); ``densekd config show`` prints the values.

Unknown keys are errors. A key under ``distill`` that is no field of `Distill` names a loss term, so a new loss needs
no line here; its own arguments are checked against its signature in `config.build`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass
class Input:
    """What a network wants to see; unset fields keep the network's own."""

    __pydantic_config__ = STRICT
    mean: list[float] | None = None  # in the network's channel order and range
    std: list[float] | None = None  # as the mean
    order: Literal["rgb", "bgr"] | None = None  # of three channels
    range: float | None = None  # 1.0 or 255.0


@dataclass
class Model:
    """A network by name (``densekd list models``) or dotted path, with the arguments of its builder."""

    __pydantic_config__ = STRICT
    name: str  # see `densekd list models`
    options: dict[str, Any] = field(default_factory=dict)  # arguments of its builder
    weights: str | None = None  # .safetensors or .pth of this very network
    in_channels: int = 3  # of the images; for other than 3 give input.mean and input.std (ours fall back to 0.5, 0.25)
    input: Input = field(default_factory=Input)


@dataclass
class Teacher(Model):
    """The frozen network. It needs weights: a random teacher teaches noise."""

    allow_untrained: bool = False  # for tests only
    precision: Literal["same", "fp32", "bf16", "fp16"] = "same"  # same: as train.amp
    fold_norms: bool = (
        True  # batch norms into the convolutions before them: less work, equal up to rounding
    )
    channels_last: bool | None = None  # its own memory format; none: as train.channels_last
    compile: bool = False  # torch.compile it
    batch_size: int | None = None  # sees at most so many images at a time; none: the whole batch


@dataclass
class Data:
    """Where images and labels come from and how they are cut."""

    __pydantic_config__ = STRICT
    dataset: str  # a name from `densekd list datasets`, or a dotted path
    root: str | None = None  # folder of the data set
    train_split: str = "train"  # name of the split to learn from
    val_split: str = "val"  # name of the split to score on
    options: dict[str, Any] = field(default_factory=dict)  # of the data set's reader
    train_options: dict[str, Any] = field(default_factory=dict)  # of the training split only
    val_options: dict[str, Any] = field(default_factory=dict)  # of the validation split only
    batch_size: int = 8  # per process
    workers: int = 2  # loader processes; 0 reads in the main process
    crop: tuple[int, int] | None = None  # (height, width); none trains on whole images
    scale: list[float] = field(default_factory=lambda: [1.0, 1.0])  # (low, high), drawn uniformly
    scales: list[float] | None = None  # instead of `scale`: draw one of these
    short_side: int | None = (
        None  # scale 1 means a shorter side of this length; none: the image's own size
    )
    long_side: int | None = None  # but a longer side of at most this length
    hflip: float = 0.5  # probability of mirroring
    color_jitter: float = 0.0  # brightness, contrast and saturation in 1 ± this
    cat_max_ratio: float | None = (
        None  # redraw a crop in which one class covers more than this (segmentation)
    )
    cache: Literal["ram", "disk", "device"] | None = (
        None  # decode once: for this run, for all runs, or as disk with the augmentation on the device; none: each time
    )
    cache_gb: float = 16.0  # the most that the cache may take: training and validation, 10^9 bytes
    augment_epochs: int | None = None  # augmentations repeat after so many epochs; none: never
    allow_unlabelled: bool = False  # images without a label train the distillation terms only
    on_bad_file: Literal["stop", "skip"] = "stop"  # an unreadable file met while training


@dataclass
class Loss:
    """The supervised term of segmentation."""

    __pydantic_config__ = STRICT
    name: Literal["cross_entropy", "ohem"] = "cross_entropy"  # ohem: hard pixels only
    aux_weight: float = 0.4  # of the auxiliary head, where the network has one
    class_weights: list[float] | None = None  # one a class (cross_entropy only)
    label_smoothing: float = 0.0  # cross_entropy only
    threshold: float = 0.7  # OHEM: keep pixels whose true class has less probability
    min_kept: float = 0.0625  # OHEM: but at least this fraction of the valid pixels


@dataclass
class Detection:
    """From a detector's raw output to boxes; its losses are the network's own (torchvision's)."""

    __pydantic_config__ = STRICT
    score_threshold: float = 0.05  # of the boxes kept
    nms_threshold: float | None = (
        None  # overlap above which the weaker of two boxes of one class goes; none: torchvision's
    )
    topk_candidates: int = 1000  # of each level, before NMS
    detections_per_image: int = 100  # after NMS


@dataclass
class Depth:
    """Range, form and supervised terms of depth."""

    __pydantic_config__ = STRICT
    min_depth: float = 0.1  # metres; truth outside the range counts nowhere
    max_depth: float = 10.0  # metres; predictions are clamped to the range when scored
    bins: int = 0  # depth as so many classes, evenly spaced in log depth; 0: regression
    losses: dict[str, float] | None = (
        None  # weights of cross_entropy, virtual_normal, silog, berhu, l1; none: the first two, or silog
    )
    virtual_normal_samples: float = (
        0.15  # point triples an image: a share of its pixels, or a count
    )
    crop: Literal["nyu_eigen", "kitti_eigen", "garg"] | None = None  # region that is scored
    align: Literal["median", "least_squares"] | None = None  # scale fitted to the truth when scored


@dataclass
class Term:
    """One distillation term: a loss, its weight, and the tensors it compares."""

    __pydantic_config__ = STRICT
    weight: float  # multiplies the loss
    loss: str = ""  # a name from `densekd list losses` or a dotted path; empty: the term's own key
    student: str = ""  # "prediction" or a module path; empty: what the network offers for this loss
    teacher: str = ""  # the same, of the teacher
    options: dict[str, Any] = field(default_factory=dict)  # arguments of the loss


@dataclass
class Holistic:
    """The adversarial term with its discriminator and the discriminator's own optimizer."""

    __pydantic_config__ = STRICT
    weight: float = 0.1  # of the student's term
    mode: Literal["wgan-gp", "hinge"] = "wgan-gp"  # of both sides
    penalty: float = 10.0  # weight of the gradient penalty (wgan-gp)
    convention: Literal["paper", "authors"] = "paper"  # authors: raw logits only, batch norm
    channels: int = 64  # of its first convolution; doubled three times
    optimizer: Literal["adam", "sgd"] = "adam"  # of the discriminator
    lr: float = 4e-4  # constant
    betas: tuple[float, float] = (0.9, 0.99)  # adam only
    momentum: float = 0.9  # sgd only
    weight_decay: float = 0.0  # of the discriminator
    start_step: int = (
        0  # the student hears the discriminator from this step on; it learns from the first
    )


@dataclass
class TeacherCache:
    """What the teacher says, stored over augmentations that repeat; needs `data.augment_epochs` and `data.crop`."""

    __pydantic_config__ = STRICT
    storage: Literal["fp16", "int8", "top_k"] = "fp16"  # top_k: of class maps, the rest in int8
    top_k: int = 4  # probabilities kept of each pixel (top_k)
    disk_gb: float = 20.0  # a larger store is refused, before any work
    folder: str | None = None  # of all stores; none: teacher in $DENSEKD_CACHE or the user's cache


@dataclass
class Distill:
    """Distillation: the holistic term, the mask, and every other term under its own name."""

    __pydantic_config__ = STRICT
    mask: Literal["label", "padding", "none"] = "label"  # which pixels the terms leave out
    holistic: Holistic | None = None  # none: no discriminator
    teacher_cache: TeacherCache | None = None  # none: the teacher runs in every step
    terms: dict[str, Term] = field(default_factory=dict)  # written as distill.NAME: {weight: ...}


@dataclass
class Group:
    """Parameters whose name starts with `prefix` (or matches it with * wildcards) learn differently."""

    __pydantic_config__ = STRICT
    prefix: str  # e.g. "backbone."
    lr_scale: float = 1.0  # factor on optim.lr
    weight_decay: float | None = None  # none: as optim.weight_decay


@dataclass
class Optim:
    """The student's optimizer and learning rate."""

    __pydantic_config__ = STRICT
    name: Literal["sgd", "adamw", "adam"] = "sgd"  # which optimizer
    lr: float = 0.01  # never scaled by batch size or processes
    momentum: float = 0.9  # sgd only
    betas: tuple[float, float] = (0.9, 0.999)  # adam and adamw
    weight_decay: float = 5e-4  # decoupled in adamw
    decay_norms: bool = True  # False: no weight decay on norms and biases
    schedule: Literal["poly", "cosine", "constant"] = "poly"  # of the learning rate
    power: float = 0.9  # of poly
    warmup_steps: int = 0  # linear
    clip: float | None = None  # largest gradient norm
    groups: list[Group] = field(default_factory=list)  # the first that matches a name holds


@dataclass
class Train:
    """The loop."""

    __pydantic_config__ = STRICT
    steps: int = 1000  # of the optimizer
    accumulate: int = 1  # batches a step
    amp: Literal["none", "bf16", "fp16"] = "none"  # autocast; fp16 with loss scaling
    channels_last: bool = False  # memory format of student and images
    compile: bool = False  # torch.compile the student
    ema: float | None = (
        None  # decay of the averaged student, e.g. 0.999; evaluated and saved in its place
    )
    sync_batchnorm: bool = False  # several processes: batch statistics over all of them
    recompute_norms: bool = (
        False  # less memory, more time: backward computes norms and activations again
    )
    deterministic: bool = False  # deterministic algorithms, slower on GPUs
    log_every: int = 20  # steps a row of metrics.jsonl
    save_every: int = 200  # steps a checkpoint
    evaluate_every: int = 0  # 0: at the end only
    best: str | None = None  # metric best.safetensors is chosen by; none: miou, ap or abs_rel
    tensorboard: bool = False  # event files too (the extra tensorboard)


@dataclass
class Evaluate:
    """How a prediction is made when it is scored."""

    __pydantic_config__ = STRICT
    scales: list[float] = field(default_factory=lambda: [1.0])  # of the image; several are averaged
    short_side: int | None = None  # scale 1 means a shorter side of this length; none: as it is
    long_side: int | None = None  # but a longer side of at most this length
    flip: bool = False  # average with the mirrored image
    window: tuple[int, int] | None = None  # sliding window (height, width); none: whole image
    overlap: float = 1 / 3  # of neighbouring windows
    batch_size: int = 1  # images of different size are padded above 1


@dataclass
class Config:
    """One recipe."""

    __pydantic_config__ = STRICT
    model: Model  # the network that is trained; the student when there is a teacher
    data: Data
    task: Literal["segmentation", "detection", "depth"] = "segmentation"  # what is predicted
    teacher: Teacher | None = None  # only `distill` and `ablate` need one
    loss: Loss = field(default_factory=Loss)
    detection: Detection = field(default_factory=Detection)
    depth: Depth = field(default_factory=Depth)
    distill: Distill = field(default_factory=Distill)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)
    seed: int = 0
    note: str = ""  # shown beside every score, e.g. "teacher saw val"
