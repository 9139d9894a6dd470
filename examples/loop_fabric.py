"""A loop of Lightning Fabric: it moves, wraps and scales; `Distiller` gives the losses.

python examples/loop_fabric.py
"""

import torch
from lightning.fabric import Fabric
from small_scenes import small_loader

from densekd import Distiller, Term, losses, models
from densekd.types import Batch


def main(**fabric_options: object) -> tuple[torch.nn.Module, list[dict[str, float]]]:
    fabric = Fabric(**{"devices": 1, **fabric_options})
    fabric.launch()
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
    inner = distiller.student  # the student with its terms; what trains
    optimizer = torch.optim.Adam(inner.parameters(), lr=2e-3)

    distiller.student, optimizer = fabric.setup(inner, optimizer)
    distiller.teacher.to(fabric.device)  # frozen: it is moved and not set up
    loader = fabric.setup_dataloaders(loader)

    history = []
    distiller.student.train()
    for step, (images, labels) in enumerate(loader):
        terms, _ = distiller.student_phase(Batch.of(images, labels), step)
        optimizer.zero_grad()
        fabric.backward(sum(terms.values()))
        optimizer.step()
        history.append({name: value.item() for name, value in terms.items()})
        fabric.print(step, {name: round(value, 3) for name, value in history[-1].items()})
    return inner.model, history


if __name__ == "__main__":
    main()
