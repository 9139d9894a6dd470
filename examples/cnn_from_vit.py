"""A vision transformer teaches a CNN: tapped tokens become maps, without class and register tokens.

python examples/cnn_from_vit.py
"""

import timm
import torch
from small_scenes import small_loader
from torch import nn

from densekd import Distiller, Taps, Term, losses, models
from densekd.types import Batch, InputSpec


class ViTSegmenter(nn.Module):
    """Yours: any transformer. This one has a linear head on its tokens."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.vit = timm.create_model("test_vit", img_size=(32, 64), num_classes=0, patch_size=8)
        self.head = nn.Linear(self.vit.num_features, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.vit.forward_features(images)[:, self.vit.num_prefix_tokens :]
        grid = self.vit.patch_embed.grid_size
        return self.head(tokens).transpose(1, 2).unflatten(2, grid)  # (N, K, h, w)


def main() -> list[dict[str, float]]:
    torch.manual_seed(0)
    loader, task = small_loader()
    k = len(task.classes)
    last = "vit.blocks.5"
    teacher = Taps(ViTSegmenter(k), {last: last}, InputSpec())  # ImageNet's mean and std
    width = teacher.model.vit.num_features
    distiller = Distiller(
        models.espnet_c(k, p=1, q=1),
        task,
        teacher=teacher,
        terms=[
            Term("pixel_wise", losses.PixelWise(), weight=10),
            Term("pair_wise", losses.PairWise(), weight=10, student="b3", teacher=last),
            # 256 channels of the CNN against the tokens' width, through a convolution that learns too.
            Term("hint", losses.FitNet(), weight=0.1, student="b3", teacher=last,
                 adapter=nn.Conv2d(256, width, 1)),
        ],
    )  # fmt: skip
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
