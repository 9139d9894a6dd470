"""Two teachers: the mean of what they predict, a feature of one of them, and a weight that rises over the steps.

python examples/two_teachers.py
"""

import torch
from small_scenes import small_loader

from densekd import Distiller, Term, losses, models
from densekd.types import Batch


def main() -> list[dict[str, float]]:
    torch.manual_seed(0)
    loader, task = small_loader()
    k = len(task.classes)
    distiller = Distiller(
        models.espnet_c(k, p=1, q=1),
        task,
        # Yours: any two networks, with weights. They may have other widths and strides.
        teacher={"wide": models.espnet(k, p=2, q=3), "small": models.espnet(k, p=1, q=1)},
        terms=[
            # Without a teacher's name: the mean of the two class distributions.
            Term("pixel_wise", losses.PixelWise(), weight=10),
            # A feature is one teacher's.
            Term(
                "pair_wise",
                losses.PairWise(),
                weight=lambda step: 10 * min(1.0, (step + 1) / 2),
                student="b3",
                teacher="b3",
                teacher_name="wide",
            ),
        ],
    )
    optimizer = torch.optim.Adam(distiller.student.parameters(), lr=2e-3)
    history = []
    for step, (images, labels) in enumerate(loader):
        terms, _ = distiller.student_phase(Batch.of(images, labels), step)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        history.append({name: value.item() for name, value in terms.items()})
        print(step, {name: round(value, 3) for name, value in history[-1].items()})
    return history


if __name__ == "__main__":
    main()
