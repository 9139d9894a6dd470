"""A detector distilled in a loop of your own: terms on every level of the pyramid, one of them with an adapter.

python examples/detection_terms.py
"""

import torch
from torch import nn

from densekd import Distiller, Term
from densekd.data import Augment, SceneSet, TrainLoader
from densekd.losses import FeatureMimic, PairWise, PixelWise
from densekd.models import Taps, fcos_timm
from densekd.tasks.detection import Detection


def main(steps: int = 3) -> list[dict[str, float]]:
    torch.manual_seed(0)
    streets = SceneSet("train", target="boxes", length=16, height=64, width=128)
    loader = TrainLoader(streets, batch_size=4, transform=Augment(crop=(64, 128)))

    def network(channels: int) -> Taps:
        detector = fcos_timm(
            streets.num_classes,
            backbone="test_resnet",
            pyramid_channels=channels,
            extra_levels=0,
            head_convs=1,
        )
        return Taps(detector, {"levels": "fpn:*"})  # a list, one map a level

    distiller = Distiller(
        network(64),
        Detection(streets.classes, streets.palette),
        teacher=network(128),  # random here: it teaches noise
        terms=[
            # "prediction" is the task's map: class logits of every level.
            Term("pixel_wise", PixelWise(form="sigmoid"), weight=10),
            Term("pair_wise", PairWise(), weight=10, student="levels", teacher="levels"),
            Term(
                "mimic",
                FeatureMimic(),
                weight=0.01,
                student="levels",
                teacher="levels",
                # 64 channels are compared with 128 through a 1x1 convolution, which learns with the student.
                adapter=nn.Conv2d(64, 128, 1),
            ),
        ],
    )
    optimizer = torch.optim.Adam(distiller.student.parameters(), lr=2e-3)  # network and adapter

    history = []
    distiller.student.train()
    for step, batch in zip(range(steps), loader, strict=False):
        losses, _ = distiller.student_phase(batch.to(torch.device("cpu")), step)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
        print(step, {name: round(value, 3) for name, value in history[-1].items()})
    return history


if __name__ == "__main__":
    main()
