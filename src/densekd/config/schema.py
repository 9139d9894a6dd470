"""Every setting, as plain dataclasses: its type, its range and its help (`Doc`). One list, so one long file.

docs/config.md is made from this file (docs/make_config_reference.py); ``densekd config show`` prints the values.

Unknown keys are errors. A key under ``distill`` that is no field of `Distill` names a loss term, and a key under
``task`` that is no field of `Task` is an argument of the task, so a new loss and a new task need no line here: their
arguments are checked against their signatures in `densekd.build`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Interval
from pydantic import ConfigDict
from typing_extensions import Doc

from densekd.config.ranges import (
    BelowOne,
    Betas,
    Between,
    Count,
    LowHigh,
    NotNegative,
    Positive,
    Scales,
    Share,
    Size,
    TermWeight,
    Whole,
)

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass
class Input:
    """What a network wants to see; a field that is not set keeps the network's own value."""

    __pydantic_config__ = STRICT
    mean: Annotated[
        list[float] | None, Doc("one value a channel, in the network's channel order and range")
    ] = None
    std: Annotated[list[float] | None, Doc("the same for the standard deviation")] = None
    order: Annotated[Literal["rgb", "bgr"] | None, Doc("order of three channels")] = None
    range: Annotated[
        float | None, Doc("the largest value of a pixel before mean and std: 1.0 or 255.0")
    ] = None


@dataclass
class Model:
    """A network by name (`densekd list models`) or dotted path, with the arguments of its builder."""

    __pydantic_config__ = STRICT
    name: Annotated[str, Doc("see `densekd list models`")]
    options: Annotated[dict[str, Any], Doc("arguments of its builder")] = field(
        default_factory=dict
    )
    weights: Annotated[
        str | None,
        Doc("a .safetensors or .pth file of this very network, or a folder of save_pretrained"),
    ] = None
    weights_prefix: Annotated[
        str, Doc("dropped from the file's keys that begin with it, such as net. of a checkpoint")
    ] = ""
    weights_ignore: Annotated[
        list[str],
        Doc(
            "patterns of the file's keys (without the prefix) that the network has not, such as head.aux.*"
        ),
    ] = field(default_factory=list)
    in_channels: Annotated[
        Count,
        Doc(
            "channels of the images; for other than 3 give input.mean and input.std (ours fall back to 0.5, 0.25)"
        ),
    ] = 3
    input: Annotated[Input, Doc("what the network wants to see")] = field(default_factory=Input)
    prediction: Annotated[
        str | None,
        Doc(
            "where the prediction is: a key, attribute or index of the network's output (parts joined by dots), or a "
            "module path; null: found by itself where the form of the output is known"
        ),
    ] = None
    int8: Annotated[
        bool,
        Doc(
            "round weights and activations as an int8 file has them, in training too; `densekd export` then writes int8"
        ),
    ] = False


@dataclass
class Teacher(Model):
    """The frozen network. It needs weights: a random teacher teaches noise."""

    allow_untrained: Annotated[bool, Doc("accept a teacher without weights; for tests only")] = (
        False
    )
    precision: Annotated[
        Literal["same", "fp32", "bf16", "fp16"],
        Doc("what the teacher computes in; same: as train.amp says"),
    ] = "same"
    classes: Annotated[
        dict[str, list[int]] | None,
        Doc(
            "the student's class name -> the teacher's indices that are this class, [] for none; null: the same classes"
        ),
    ] = None
    activation: Annotated[
        Literal["softmax", "sigmoid", "none"],
        Doc(
            "what makes probabilities of a segmentation teacher's prediction; sigmoid: each channel is a yes or no, as "
            "of a binary or multi-label network; none: it gives probabilities already"
        ),
    ] = "softmax"
    num_classes: Annotated[
        Count | None,
        Doc(
            "how many classes it predicts, with `classes` or `activation`; null: as its weights file says"
        ),
    ] = None
    scale: Annotated[
        Positive,
        Doc(
            "the teacher sees the images enlarged by this factor, and its maps are brought back; not for boxes. 1.42 "
            "shows a teacher of 512 pixels crops of 360 as it knows them"
        ),
    ] = 1.0
    fold_norms: Annotated[
        bool,
        Doc("fold batch norms into the convolutions before them: less work, equal up to rounding"),
    ] = True
    channels_last: Annotated[
        bool | None, Doc("the teacher's own memory format; null: as train.channels_last says")
    ] = None
    compile: Annotated[bool, Doc("compile the teacher with torch.compile")] = False
    runtime: Annotated[
        Literal["eager", "onnxruntime", "openvino", "onnxruntime_int8", "openvino_int8"],
        Doc(
            "what computes the teacher: eager (PyTorch), or on CPUs ONNX Runtime or OpenVINO, in float32, or in int8 "
            "calibrated on training images; they need data.crop"
        ),
    ] = "eager"
    batch_size: Annotated[
        Count | None,
        Doc("the teacher sees at most so many images at a time; null: the whole batch"),
    ] = None


@dataclass
class Unlabelled:
    """A second set of images without labels: some of them are added to every batch, for the distillation terms alone.

    It needs `data.crop`; `densekd train` leaves it out. What is null is as in `data`.
    """

    __pydantic_config__ = STRICT
    root: Annotated[
        str | None, Doc("a folder of images, with all folders inside it; or the root of `dataset`")
    ] = None
    dataset: Annotated[
        str | None,
        Doc("a name or dotted path as in data.dataset, whose labels are ignored; null: any images"),
    ] = None
    split: Annotated[str | None, Doc("the split of `dataset`; null: data.train_split")] = None
    options: Annotated[dict[str, Any], Doc("arguments of the reader of `dataset`")] = field(
        default_factory=dict
    )
    batch_size: Annotated[Count, Doc("images that are added to a batch of one process")] = 4
    scale: Annotated[LowHigh | None, Doc("their own data.scale, also in place of data.scales")] = (
        None
    )
    short_side: Annotated[Count | None, Doc("their own data.short_side")] = None
    hflip: Annotated[Share | None, Doc("their own data.hflip")] = None
    color_jitter: Annotated[NotNegative | None, Doc("their own data.color_jitter")] = None


@dataclass
class Data:
    """Where images and labels come from and how they are cut."""

    __pydantic_config__ = STRICT
    dataset: Annotated[str, Doc("a name from `densekd list datasets`, or a dotted path")]
    root: Annotated[str | None, Doc("the folder of the data set")] = None
    train_split: Annotated[str, Doc("name of the split to learn from")] = "train"
    val_split: Annotated[str, Doc("name of the split to score on")] = "val"
    val_fraction: Annotated[
        Between | None,
        Doc(
            "score on about this share of train_split, held out of training, in place of val_split"
        ),
    ] = None
    val_groups: Annotated[
        str | None,
        Doc(
            "what val_fraction keeps together: folder, or a regular expression on names; null: each image by itself"
        ),
    ] = None
    val_seed: Annotated[
        Whole,
        Doc("another choice of val_fraction; `seed` leaves it as it is, so that runs compare"),
    ] = 0
    options: Annotated[dict[str, Any], Doc("arguments of the data set's reader")] = field(
        default_factory=dict
    )
    train_options: Annotated[dict[str, Any], Doc("the same, for the training split only")] = field(
        default_factory=dict
    )
    val_options: Annotated[dict[str, Any], Doc("the same, for the validation split only")] = field(
        default_factory=dict
    )
    batch_size: Annotated[Count, Doc("images in a batch of one process")] = 8
    workers: Annotated[
        Whole, Doc("loader processes, at most one a core; 0 reads in the main process")
    ] = 2
    crop: Annotated[Size | None, Doc("(height, width); null trains on whole images")] = None
    scale: Annotated[LowHigh, Doc("the image's scale is drawn uniformly between the two")] = field(
        default_factory=lambda: [1.0, 1.0]
    )
    scales: Annotated[Scales | None, Doc("instead of `scale`: draw one of these")] = None
    short_side: Annotated[
        Count | None,
        Doc("scale 1 means a shorter side of this length; null: the image's own size"),
    ] = None
    long_side: Annotated[Count | None, Doc("but a longer side of at most this length")] = None
    hflip: Annotated[Share, Doc("probability of mirroring")] = 0.5
    color_jitter: Annotated[
        NotNegative, Doc("brightness, contrast and saturation are drawn in 1 ± this")
    ] = 0.0
    cat_max_ratio: Annotated[
        Annotated[float, Interval(gt=0, le=1)] | None,
        Doc("draw another crop while one class covers more than this share (segmentation)"),
    ] = None
    cache: Annotated[
        Literal["ram", "disk", "device"] | None,
        Doc(
            "decode once: for this run, for all runs, or as disk with the augmentation on the device; null: each time"
        ),
    ] = None
    cache_gb: Annotated[
        Positive, Doc("the most that the cache may take for training and validation, in 10^9 bytes")
    ] = 16.0
    augment_epochs: Annotated[
        Count | None, Doc("augmentations repeat after so many epochs; null: never")
    ] = None
    allow_unlabelled: Annotated[
        bool, Doc("accept images without a label; they train the distillation terms only")
    ] = False
    unlabelled: Annotated[
        Unlabelled | None, Doc("a second set, whose images are added to every batch; null: none")
    ] = None
    on_bad_file: Annotated[
        Literal["stop", "skip"], Doc("what happens when training meets an unreadable file")
    ] = "stop"


@dataclass
class Task:
    """What is predicted, and the task's own settings, which are listed below task by task.

    `task: depth` means `task: {name: depth}`.
    """

    __pydantic_config__ = STRICT
    name: Annotated[
        str, Doc("a name from `densekd list tasks`, or a dotted path to a class of your own")
    ] = "segmentation"
    options: Annotated[
        dict[str, Any], Doc("arguments of the task; written as task.KEY, without `options`")
    ] = field(default_factory=dict)


@dataclass
class Term:
    """One distillation term: a loss, its weight, and the tensors it compares."""

    __pydantic_config__ = STRICT
    weight: Annotated[
        TermWeight,
        Doc(
            "the loss is multiplied by it; points: linear between them over the steps done, constant outside"
        ),
    ]
    loss: Annotated[
        str, Doc("a name from `densekd list losses` or a dotted path; empty: the term's own key")
    ] = ""
    student: Annotated[
        str, Doc('"prediction" or a module path; empty: what the network offers for this loss')
    ] = ""
    teacher: Annotated[str, Doc("the same, for the teacher")] = ""
    teacher_name: Annotated[
        str, Doc("which one of `teachers`; empty: the mean of what all of them predict")
    ] = ""
    options: Annotated[
        dict[str, Any], Doc("arguments of the loss; written as distill.TERM.KEY, without `options`")
    ] = field(default_factory=dict)


@dataclass
class Holistic:
    """The adversarial term with its discriminator and the discriminator's own optimizer."""

    __pydantic_config__ = STRICT
    weight: Annotated[NotNegative, Doc("weight of the student's term")] = 0.1
    mode: Annotated[
        Literal["wgan-gp", "hinge"], Doc("form of the student's and the discriminator's loss")
    ] = "wgan-gp"
    penalty: Annotated[NotNegative, Doc("weight of the gradient penalty (wgan-gp only)")] = 10.0
    convention: Annotated[
        Literal["paper", "authors"],
        Doc("as in the paper, or as in the authors' code: raw logits only, batch norm"),
    ] = "paper"
    channels: Annotated[
        Count, Doc("channels of the discriminator's first convolution; doubled three times")
    ] = 64
    optimizer: Annotated[Literal["adam", "sgd"], Doc("the discriminator's optimizer")] = "adam"
    lr: Annotated[Positive, Doc("learning rate; it stays constant")] = 4e-4
    betas: Annotated[Betas, Doc("adam only")] = (0.9, 0.99)
    momentum: Annotated[BelowOne, Doc("sgd only")] = 0.9
    weight_decay: Annotated[NotNegative, Doc("weight decay of the discriminator")] = 0.0
    start_step: Annotated[
        Whole,
        Doc(
            "the student hears the discriminator from this step on; the discriminator learns from the first"
        ),
    ] = 0


@dataclass
class TeacherCache:
    """What the teacher says, stored over augmentations that repeat; needs `data.augment_epochs` and `data.crop`."""

    __pydantic_config__ = STRICT
    storage: Annotated[
        Literal["fp16", "int8", "top_k"],
        Doc("form of the stored maps; top_k holds for class maps, all else is int8 then"),
    ] = "fp16"
    top_k: Annotated[Count, Doc("probabilities kept of each pixel (storage top_k only)")] = 4
    disk_gb: Annotated[Positive, Doc("a larger store is refused, before any work")] = 20.0
    folder: Annotated[
        str | None,
        Doc("folder of all stores; null: teacher in $DENSEKD_CACHE or in the user's cache"),
    ] = None


@dataclass
class Balance:
    """Makes a term's weight the size of its gradient: 1 is as large as that of the task's own loss."""

    __pydantic_config__ = STRICT
    every: Annotated[
        Count, Doc("steps between two measurements, each of which costs a backward pass a term")
    ] = 10
    decay: Annotated[BelowOne, Doc("of the running means of the measured norms")] = 0.9


@dataclass
class PseudoBoxes:
    """The teacher's boxes teach images without labels, as if they were theirs; of any detector, one of sets too."""

    __pydantic_config__ = STRICT
    weight: Annotated[NotNegative, Doc("multiplies the supervised loss on these boxes")] = 1.0
    score: Annotated[Share, Doc("boxes of this score and more count")] = 0.5


@dataclass
class Distill:
    """Distillation: the holistic term, the mask, and every other term under its own name."""

    __pydantic_config__ = STRICT
    mask: Annotated[
        Literal["label", "padding", "none"], Doc("which pixels the terms leave out")
    ] = "label"
    holistic: Annotated[Holistic | None, Doc("null: no discriminator")] = None
    pseudo_boxes: Annotated[
        PseudoBoxes | None,
        Doc("detection; null: images without labels train the other terms alone"),
    ] = None
    balance: Annotated[
        Balance | None,
        Doc("null: weights multiply the losses; {}: the gradients, with its defaults"),
    ] = None
    teacher_cache: Annotated[TeacherCache | None, Doc("null: the teacher runs in every step")] = (
        None
    )
    terms: Annotated[dict[str, Term], Doc("written as distill.NAME: {weight: ...}")] = field(
        default_factory=dict
    )


@dataclass
class Group:
    """Parameters whose name starts with `prefix` (or matches it with * wildcards) learn differently."""

    __pydantic_config__ = STRICT
    prefix: Annotated[str, Doc('for example "backbone."')]
    lr_scale: Annotated[NotNegative, Doc("optim.lr is multiplied by it")] = 1.0
    weight_decay: Annotated[NotNegative | None, Doc("null: as optim.weight_decay says")] = None


@dataclass
class Optim:
    """The student's optimizer and learning rate."""

    __pydantic_config__ = STRICT
    name: Annotated[Literal["sgd", "adamw", "adam"], Doc("which optimizer")] = "sgd"
    lr: Annotated[
        Positive, Doc("learning rate; it is never scaled by batch size or number of processes")
    ] = 0.01
    momentum: Annotated[BelowOne, Doc("sgd only")] = 0.9
    betas: Annotated[Betas, Doc("adam and adamw")] = (0.9, 0.999)
    weight_decay: Annotated[NotNegative, Doc("weight decay; decoupled in adamw")] = 5e-4
    decay_norms: Annotated[bool, Doc("false: no weight decay on norms and biases")] = True
    schedule: Annotated[
        Literal["poly", "cosine", "constant"], Doc("how the learning rate falls")
    ] = "poly"
    power: Annotated[NotNegative, Doc("exponent of poly")] = 0.9
    warmup_steps: Annotated[Whole, Doc("steps in which the learning rate rises linearly")] = 0
    clip: Annotated[Positive | None, Doc("largest norm of the gradient; null: any")] = None
    groups: Annotated[list[Group], Doc("the first that matches a parameter's name holds")] = field(
        default_factory=list
    )


@dataclass
class Train:
    """The training loop."""

    __pydantic_config__ = STRICT
    steps: Annotated[Count, Doc("steps of the optimizer")] = 1000
    accumulate: Annotated[Count, Doc("batches in a step of the optimizer")] = 1
    auto: Annotated[
        bool,
        Doc(
            "time the step on this machine first, and take memory formats and the teacher's batch by it; equal up to "
            "rounding (densekd tune shows what it finds)"
        ),
    ] = False
    amp: Annotated[Literal["none", "bf16", "fp16"], Doc("autocast; fp16 with loss scaling")] = (
        "none"
    )
    channels_last: Annotated[bool, Doc("memory format of student and images")] = False
    compile: Annotated[bool, Doc("compile the student with torch.compile")] = False
    ema: Annotated[
        Between | None,
        Doc(
            "decay of the averaged student, for example 0.999; it is evaluated and saved in the student's place"
        ),
    ] = None
    sync_batchnorm: Annotated[
        bool, Doc("with several processes: batch statistics over all of them")
    ] = False
    recompute_norms: Annotated[
        bool, Doc("less memory, more time: backward computes norms and activations again")
    ] = False
    deterministic: Annotated[bool, Doc("deterministic algorithms, slower on GPUs")] = False
    log_every: Annotated[Count, Doc("steps between two rows of metrics.jsonl")] = 20
    save_every: Annotated[Count, Doc("steps between two checkpoints")] = 200
    evaluate_every: Annotated[Whole, Doc("steps between two evaluations; 0: at the end only")] = 0
    best: Annotated[
        str | None,
        Doc(
            "the metric that best.safetensors is chosen by; null: the task's main one (miou, ap, abs_rel)"
        ),
    ] = None
    trackers: Annotated[
        list[str],
        Doc(
            "where the run is shown too: tensorboard, wandb, mlflow, trackio (each needs its extra), or a dotted path"
        ),
    ] = field(default_factory=list)
    tensorboard: Annotated[bool, Doc("the same as tensorboard among `trackers`")] = False


@dataclass
class Evaluate:
    """How a prediction is made when it is scored."""

    __pydantic_config__ = STRICT
    scales: Annotated[
        Scales, Doc("scales of the image; the predictions of several are averaged")
    ] = field(default_factory=lambda: [1.0])
    short_side: Annotated[
        Count | None,
        Doc("scale 1 means a shorter side of this length; null: the image's own size"),
    ] = None
    long_side: Annotated[Count | None, Doc("but a longer side of at most this length")] = None
    flip: Annotated[bool, Doc("average with the mirrored image")] = False
    window: Annotated[Size | None, Doc("sliding window (height, width); null: the whole image")] = (
        None
    )
    overlap: Annotated[BelowOne, Doc("overlap of neighbouring windows, as a share")] = 1 / 3
    batch_size: Annotated[
        Count, Doc("images in a batch; above 1, images of different size are padded")
    ] = 1


@dataclass
class Config:
    """One recipe."""

    __pydantic_config__ = STRICT
    model: Annotated[Model, Doc("the network that is trained; the student when there is a teacher")]
    data: Annotated[Data, Doc("images and labels")]
    task: Annotated[Task, Doc("what is predicted")] = field(default_factory=Task)
    teacher: Annotated[Teacher | None, Doc("only `distill` and `ablate` need one")] = None
    teachers: Annotated[
        dict[str, Teacher] | None,
        Doc("several, in place of `teacher`: a name of your own -> what `teacher` holds"),
    ] = None
    distill: Annotated[Distill, Doc("what the student learns from the teacher")] = field(
        default_factory=Distill
    )
    optim: Annotated[Optim, Doc("optimizer and learning rate")] = field(default_factory=Optim)
    train: Annotated[Train, Doc("the training loop")] = field(default_factory=Train)
    evaluate: Annotated[Evaluate, Doc("how a prediction is made when it is scored")] = field(
        default_factory=Evaluate
    )
    seed: Annotated[
        int,
        Interval(ge=0, lt=2**63),
        Doc("of initial weights, order of the images and augmentation"),
    ] = 0
    note: Annotated[str, Doc('shown beside every score, for example "teacher saw val"')] = ""

    @property
    def every_teacher(self) -> dict[str, Teacher]:
        """Section -> its settings: `teacher` alone, or `teachers.NAME` of each; empty where nothing teaches."""
        if self.teachers:
            return {f"teachers.{name}": section for name, section in self.teachers.items()}
        return {} if self.teacher is None else {"teacher": self.teacher}
