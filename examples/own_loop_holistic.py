"""All three terms in a loop of your own: `Distiller` gives the terms, the optimizers stay yours.

python examples/own_loop_holistic.py
"""

import torch

from densekd import Distiller, Term, data, losses, models, tasks
from densekd.distill import Adversary, Discriminator


def main(steps: int = 3) -> tuple[Distiller, list[dict[str, float]]]:
    torch.manual_seed(0)
    scenes = data.SceneSet("train", length=16, height=64, width=128)
    loader = data.TrainLoader(scenes, batch_size=4, transform=data.Augment(crop=(64, 128)))
    k = scenes.num_classes

    discriminator = Discriminator(k, channels=16)
    distiller = Distiller(
        models.espnet_c(k, p=1, q=1),
        tasks.Segmentation(scenes.classes, scenes.palette),
        teacher=models.espnet(k, p=2, q=3),  # frozen, in eval mode for good
        terms=[
            Term("pixel_wise", losses.PixelWise(), weight=10),
            # Features are named by their module paths.
            Term("pair_wise", losses.PairWise(), weight=10, student="b3", teacher="b3"),
        ],
        adversary=Adversary(discriminator, weight=0.1),
    )
    optimizer = torch.optim.Adam(distiller.student.parameters(), lr=2e-3)
    discriminator_optimizer = torch.optim.Adam(
        discriminator.parameters(), lr=4e-4, betas=(0.9, 0.99)
    )

    history = []
    distiller.student.train()
    for step, batch in zip(range(steps), loader, strict=False):
        batch = batch.to(torch.device("cpu"))

        terms, maps = distiller.student_phase(batch, step)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()

        # The maps are detached: this phase trains the discriminator alone. One backward for both of its terms.
        scores = distiller.discriminator_phase(maps)
        discriminator_optimizer.zero_grad()
        sum(scores.values()).backward()
        discriminator_optimizer.step()

        history.append({name: value.item() for name, value in {**terms, **scores}.items()})
        print(step, {name: round(value, 3) for name, value in history[-1].items()})
    return distiller, history


if __name__ == "__main__":
    main()
