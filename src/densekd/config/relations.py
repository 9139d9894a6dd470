"""What settings ask of one another."""

from __future__ import annotations

from densekd.config.schema import Config


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
    teacher = config.teacher
    if (
        teacher is not None
        and teacher.num_classes is not None
        and teacher.classes is None
        and teacher.activation != "sigmoid"
    ):
        lines.append(
            "teacher.num_classes: needs teacher.classes, which says what the student makes of the teacher's classes"
        )
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
