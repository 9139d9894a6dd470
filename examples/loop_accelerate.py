"""A loop of Accelerate: it moves, wraps and scales; `Distiller` gives the losses.

accelerate launch examples/loop_accelerate.py      (or: python examples/loop_accelerate.py)
"""

import torch
from accelerate import Accelerator
from small_scenes import small_loader

from densekd import Distiller, Term, losses, models
from densekd.types import Batch


def main() -> tuple[torch.nn.Module, list[dict[str, float]]]:
    accelerator = Accelerator()
    torch.manual_seed(0)
    loader, task = small_loader()  # yours: any DataLoader
    k = len(task.classes)
    distiller = Distiller(
        models.espnet_c(k, p=1, q=1),  # yours: any two networks
        task,
        teacher=models.espnet(k, p=1, q=1),  # random here: load trained weights
        terms=[
            Term("pixel_wise", losses.PixelWise(), weight=10),
            Term("pair_wise", losses.PairWise(), weight=10, student="b3", teacher="b3"),
        ],
    )
    optimizer = torch.optim.Adam(distiller.student.parameters(), lr=2e-3)

    # Prepare what trains (the student with its terms), not the frozen teacher.
    distiller.student, optimizer, loader = accelerator.prepare(distiller.student, optimizer, loader)
    distiller.teacher.to(accelerator.device)

    history = []
    distiller.student.train()
    for step, (images, labels) in enumerate(loader):
        with accelerator.autocast():
            terms, _ = distiller.student_phase(Batch.of(images, labels), step)
        optimizer.zero_grad()
        accelerator.backward(sum(terms.values()))
        optimizer.step()
        history.append({name: value.item() for name, value in terms.items()})
        accelerator.print(step, {name: round(value, 3) for name, value in history[-1].items()})
    # The bare student: its keys carry no wrapper's prefix.
    return accelerator.unwrap_model(distiller.student).model, history


if __name__ == "__main__":
    main()
