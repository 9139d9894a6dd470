"""Two labelled images and two without labels in every batch; the second pair trains the distillation terms alone.

python examples/unlabelled_stream.py
"""

import torch

from densekd import Distiller, Term, losses, models, tasks
from densekd.data import Augment, SceneSet, TrainLoader, Unlabelled


def main(steps: int = 3) -> tuple[list[dict[str, float]], torch.Tensor]:
    torch.manual_seed(0)
    scenes = SceneSet("train", length=4, height=32, width=64)
    # Yours: densekd.data.ImageFolder("drives"), all images in a folder. In a recipe:
    # data.unlabelled: {root: drives, batch_size: 2}
    others = SceneSet("val", length=8, height=32, width=64)
    loader = TrainLoader(
        scenes,
        batch_size=2,
        transform=Augment(crop=(32, 64)),
        # Its own augmentation: here larger changes of scale.
        unlabelled=Unlabelled(others, 2, Augment(crop=(32, 64), scale=(0.5, 2.0))),
    )
    k = scenes.num_classes
    distiller = Distiller(
        models.espnet_c(k, p=1, q=1),
        tasks.Segmentation(scenes.classes, scenes.palette),
        teacher=models.espnet(k, p=1, q=1),  # random here: load trained weights
        terms=[Term("pixel_wise", losses.PixelWise(), weight=10)],
    )
    optimizer = torch.optim.Adam(distiller.student.parameters(), lr=2e-3)
    history = []
    for step, batch in zip(range(steps), loader, strict=False):
        batch = batch.to(torch.device("cpu"))
        terms, _ = distiller.student_phase(batch, step)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        history.append({name: value.item() for name, value in terms.items()})
        print(step, batch.labelled.tolist(), {n: round(v, 3) for n, v in history[-1].items()})
    return history, batch.labelled


if __name__ == "__main__":
    main()
