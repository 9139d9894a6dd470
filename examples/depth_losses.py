"""The depth losses in a loop of your own: they take metres, and know no network.

python examples/depth_losses.py
"""

import torch

from densekd.data import Augment, SceneSet, TrainLoader
from densekd.losses import pixel_wise, silog, virtual_normal
from densekd.models import Taps, depth_timm
from densekd.ops.resize import resize_labels, resize_map

RANGE = (1.0, 80.0)  # metres


def main(steps: int = 3) -> list[dict[str, float]]:
    torch.manual_seed(0)
    streets = SceneSet("train", target="depth", length=16, height=64, width=128)
    loader = TrainLoader(streets, batch_size=4, transform=Augment(crop=(64, 128)))

    def network(channels: int) -> Taps:
        # One class: metres inside the range. More would be bins.
        return Taps(
            depth_timm(1, backbone="test_resnet", pyramid_channels=channels, depth_range=RANGE)
        )

    teacher = network(64).eval().requires_grad_(False)  # random here: it teaches noise
    student = network(32).train()
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3)

    history = []
    for step, batch in zip(range(steps), loader, strict=False):
        batch = batch.to(torch.device("cpu"))
        depth, camera = batch.targets.depth, batch.targets.intrinsics  # (N, 1, H, W), (N, 4)
        valid = (depth[:, 0] >= RANGE[0]) & (depth[:, 0] <= RANGE[1])  # (N, H, W); the sky is 0
        with torch.no_grad():
            teacher_depth = teacher(batch.images).prediction
        student_depth = student(batch.images).prediction  # (N, 1, H / 4, W / 4)

        # The supervised losses want the size of the truth, and so do the intrinsics.
        full = resize_map(student_depth, depth.shape[-2:])
        terms = {
            "silog": silog(full, depth, mask=valid),
            "virtual_normal": virtual_normal(full, depth, camera, mask=valid, samples=1000),
            "pixel_wise": pixel_wise(
                student_depth,
                teacher_depth,
                form="regression",
                mask=resize_labels(valid, student_depth.shape[-2:]),
            ),
        }
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        history.append({name: term.item() for name, term in terms.items()})
        print(step, {name: round(value, 3) for name, value in history[-1].items()})
    return history


if __name__ == "__main__":
    main()
