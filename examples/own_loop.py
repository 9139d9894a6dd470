"""Distillation in a training loop of your own: no config, no engine, no command line.

python examples/own_loop.py [TEACHER.safetensors]
"""

import sys

import torch

from densekd.data import Augment, SceneSet, TrainLoader
from densekd.losses import cross_entropy, pair_wise, pixel_wise
from densekd.models import Taps, espnet, espnet_c, load_weights
from densekd.ops.resize import resize_labels, resize_map


def main(teacher_file: str | None = None, steps: int = 5) -> tuple[Taps, list[dict[str, float]]]:
    torch.manual_seed(0)
    scenes = SceneSet("train", length=16, height=64, width=128)
    loader = TrainLoader(scenes, batch_size=4, transform=Augment(crop=(64, 128), scale=(0.8, 1.2)))

    network = espnet(scenes.num_classes, p=2, q=3)
    if teacher_file is not None:  # without it the teacher is random and teaches noise
        load_weights(network, teacher_file)
    # Taps takes RGB images in [0, 1], normalises them as the network wants, and reads tensors by module path.
    teacher = Taps(network, {"feature": "b3"}).eval().requires_grad_(False)
    student = Taps(espnet_c(scenes.num_classes, p=1, q=1), {"feature": "b3"})
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3)

    history = []
    student.train()
    for step, batch in zip(range(steps), loader, strict=False):  # the loader never ends
        batch = batch.to(torch.device("cpu"))  # images become float in [0, 1]
        with torch.no_grad():
            teacher_output = teacher(batch.images)
        student_output = student(batch.images)

        # Both sides of a term must have one map size, and so must the mask: resize to the student's (1/8).
        size = student_output.prediction.shape[-2:]
        valid = resize_labels(batch.targets != scenes.ignore_index, size)  # (N, h, w) bool
        terms = {
            "ce": cross_entropy(student_output.prediction, batch.targets),
            "pixel_wise": 10
            * pixel_wise(
                student_output.prediction, resize_map(teacher_output.prediction, size), mask=valid
            ),
            "pair_wise": 10
            * pair_wise(
                student_output.features["feature"], teacher_output.features["feature"], mask=valid
            ),
        }

        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        history.append({name: term.item() for name, term in terms.items()})
        print(step, {name: round(value, 3) for name, value in history[-1].items()})
    return student, history


if __name__ == "__main__":
    main(*sys.argv[1:2])
