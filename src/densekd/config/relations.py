"""What settings ask of one another."""

from __future__ import annotations

from densekd.config.schema import Config
from densekd.ops.names import did_you_mean


def broken_relations(config: Config) -> list[str]:
    """A line for every setting that another one forbids or needs."""
    data = config.data
    lines = []
    if data.unlabelled is not None and data.crop is None:
        lines.append("data.unlabelled: needs data.crop, the size of all images of a batch")
    if data.unlabelled is not None and data.cache == "device":
        lines.append(
            "data.cache: device keeps one set alone on the device; take disk or ram with data.unlabelled"
        )
    if data.val_groups is not None and data.val_fraction is None:
        lines.append("data.val_groups: needs data.val_fraction, the share to hold out")
    if config.teachers and config.teacher is not None:
        lines.append(
            "teachers: there is a teacher too; move it among them under a name, or leave one out (teacher: null)"
        )
    wrong = [name for name in config.teachers or {} if not name or "." in name]
    if wrong:
        lines.append(f"teachers: {wrong[0]!r} is no name; give each a name without a dot")
    for where, teacher in config.every_teacher.items():
        counted = teacher.num_classes is not None and teacher.activation != "sigmoid"
        if counted and teacher.classes is None:
            lines.append(
                f"{where}.num_classes: needs {where}.classes, which says what the student makes of the "
                "teacher's classes"
            )
    lines += [
        f"distill.{name}.teacher_name: {term.teacher_name!r} is none of the teachers "
        f"({', '.join(config.teachers) if config.teachers else 'there is no section teachers'}); "
        + (did_you_mean(term.teacher_name, config.teachers) if config.teachers else "leave it out")
        for name, term in config.distill.terms.items()
        if term.teacher_name and term.teacher_name not in (config.teachers or {})
    ]
    if config.model.int8:
        lines += [
            f"train.{key}: works on batch norms in training, and with model.int8 they keep their statistics; leave it "
            "out"
            for key in ("sync_batchnorm", "recompute_norms")
            if getattr(config.train, key)
        ]
        if config.train.compile:
            lines.append(
                "train.compile: torch does not compile the rounding of model.int8; leave it out"
            )
    lines += [
        f"{where}.compile: torch does not compile the rounding of {where}.int8; leave it out"
        for where, teacher in config.every_teacher.items()
        if teacher.int8 and teacher.compile
    ]
    lines += runtime_relations(config)
    if config.distill.balance is not None:
        forbidden = {
            "train.amp": config.train.amp == "fp16"
            and "fp16, whose gradients are scaled; take bf16 or none",
            "train.compile": config.train.compile
            and "true, whose backward pass runs once only; leave it out",
        }
        lines += [f"distill.balance: {key} is {why}" for key, why in forbidden.items() if why]
    if config.distill.pseudo_boxes is not None:
        wrong_with = {
            "teachers": (config.teachers, "are those of one teacher; give it as the section teacher"),
            "distill.teacher_cache": (config.distill.teacher_cache, "are not stored; leave the store out"),
        }  # fmt: skip
        lines += [
            f"distill.pseudo_boxes: {key} is set, and boxes {why}"
            for key, (given, why) in wrong_with.items()
            if given
        ]
    if config.distill.teacher_cache is None:
        return lines
    needed = (
        ("augment_epochs", data.augment_epochs, "else no augmented image is ever seen twice"),
        ("crop", data.crop, "else an image's padding depends on what else is in its batch"),
    )
    return lines + [
        f"distill.teacher_cache: needs data.{key}, {why}"
        for key, given, why in needed
        if given is None
    ]


def runtime_relations(config: Config) -> list[str]:
    """What a teacher's other runtime forbids or needs."""
    lines = []
    for where, teacher in config.every_teacher.items():
        if teacher.runtime == "eager":
            continue
        who = f"{where}.runtime: {teacher.runtime}"
        if config.data.crop is None:
            lines.append(f"{who} needs data.crop, the size of all images that its program takes")
        if teacher.compile:
            lines.append(
                f"{who} leaves nothing to torch.compile; leave {where}.compile out, or the runtime"
            )
        if teacher.int8:
            lines.append(f"{who} does not run the rounding of {where}.int8; leave one of them out")
        if teacher.precision not in ("same", "fp32"):
            lines.append(
                f"{who} computes in formats of its own; leave {where}.precision {teacher.precision} out, or the runtime"
            )
    return lines
