"""A LightningModule: `Distiller` gives the losses of a step, the Trainer does the rest.

python examples/loop_lightning.py
"""

import lightning
import torch
from small_scenes import small_loader

from densekd import Distiller, Term, losses, models
from densekd.types import Batch


class Distilled(lightning.LightningModule):
    def __init__(self, distiller: Distiller, lr: float = 2e-3) -> None:
        super().__init__()
        self.student = (
            distiller.student
        )  # registered: its parameters train, are saved and shared over ranks
        self.distiller = distiller  # no module, so the frozen teacher is neither saved nor wrapped
        self.lr = lr
        self.history: list[dict[str, float]] = []

    def setup(self, stage: str) -> None:
        self.distiller.teacher.to(self.device)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        terms, _ = self.distiller.student_phase(Batch.of(*batch), self.global_step)
        self.log_dict(terms, prog_bar=True)
        self.history.append({name: value.item() for name, value in terms.items()})
        return sum(terms.values())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.student.parameters(), lr=self.lr)


def main(**trainer_options: object) -> tuple[torch.nn.Module, list[dict[str, float]]]:
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
    module = Distilled(distiller)
    lightning.Trainer(max_epochs=1, logger=False, **trainer_options).fit(module, loader)
    return module.student.model, module.history  # the bare student


if __name__ == "__main__":
    main()
