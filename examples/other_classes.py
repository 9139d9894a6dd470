"""A teacher of other classes: its 19 are put together to the student's 3.

python examples/other_classes.py
"""

import torch
from small_scenes import small_loader

from densekd import Distiller, Taps, Term, losses, models, tasks
from densekd.models.label_space import LabelSpace
from densekd.types import Batch

CLASSES = ["ground", "things", "rest"]
# Student's class -> the teacher's indices (Cityscapes' order); [] where the teacher knows no such class.
# In a recipe: teacher.classes: {ground: [0, 1, 9], things: [11, ...], rest: [2, ...]}
GROUPS = [[0, 1, 9], [11, 12, 13, 14, 15, 16, 17, 18], [2, 3, 4, 5, 6, 7, 8, 10]]
# The scenes' nine classes -> the student's three, for the labels.
LABELS = torch.tensor([0, 0, 2, 2, 2, 1, 1, 2, 2])


def main() -> list[dict[str, float]]:
    torch.manual_seed(0)
    loader, _ = small_loader()
    task = tasks.Segmentation(CLASSES, [(128, 64, 128), (0, 0, 142), (70, 70, 70)])
    network = models.espnet(19, p=1, q=1)  # yours: a Cityscapes network with its weights
    teacher = Taps(network, {"b3": "b3"}, label_space=LabelSpace(GROUPS, 19))
    distiller = Distiller(
        models.espnet_c(len(CLASSES), p=1, q=1),
        task,
        teacher=teacher,
        terms=[
            Term("pixel_wise", losses.PixelWise(), weight=10),
            # Features know no classes: they are compared as they are.
            Term("pair_wise", losses.PairWise(), weight=10, student="b3", teacher="b3"),
        ],
    )
    optimizer = torch.optim.Adam(distiller.student.parameters(), lr=2e-3)
    history = []
    for step, (images, labels) in enumerate(loader):
        known = labels != task.ignore_index
        labels = torch.where(known, LABELS[labels.clamp(max=len(LABELS) - 1)], labels)
        terms, _ = distiller.student_phase(Batch.of(images, labels), step)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        history.append({name: value.item() for name, value in terms.items()})
        print(step, {name: round(value, 3) for name, value in history[-1].items()})
    return history


if __name__ == "__main__":
    main()
