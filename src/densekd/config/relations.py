"""What settings ask of one another."""

from __future__ import annotations

from densekd.config.schema import Config


def broken_relations(config: Config) -> list[str]:
    """A line for every setting that another one forbids or needs."""
    data = config.data
    if config.distill.teacher_cache is None:
        return []
    needed = (
        ("augment_epochs", data.augment_epochs, "else no augmented image is ever seen twice"),
        ("crop", data.crop, "else an image's padding depends on what else is in its batch"),
    )
    return [
        f"distill.teacher_cache: needs data.{key}, {why}"
        for key, given, why in needed
        if given is None
    ]
