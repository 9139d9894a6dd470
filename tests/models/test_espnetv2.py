from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from densekd.data import Cityscapes
from densekd.errors import UserError, WeightsError
from densekd.metrics import ConfusionMatrix
from densekd.models import Taps, espnetv2, load_weights
from densekd.models.espnetv2 import CHANNELS
from tests.models.base import CLASSES, ModelTester


class TestESPNetv2(ModelTester):
    stride = 1
    aux = False

    def build(self, in_channels: int = 3) -> nn.Module:
        return espnetv2(CLASSES, width=0.5, in_channels=in_channels)


@pytest.mark.parametrize("width", sorted(CHANNELS))
def test_widths(width):
    """The sizes are those of the published files, which have 20 outputs, without the activations never called."""
    sizes = {0.5: 80230, 1.0: 233786, 1.5: 468010, 2.0: 788762}
    count = sum(p.numel() for p in espnetv2(19, width=width, background=True).parameters())
    assert count == sizes.get(width, count)


@pytest.mark.parametrize(
    ("classes", "width", "words"), [(5, 0.75, "width is 0.75; .* 2.0"), (1, 2.0, "2 or more")]
)
def test_what_cannot_be_built(classes, width, words):
    with pytest.raises(UserError, match=words):
        espnetv2(classes, width=width)


def test_the_last_class_is_not_returned():
    torch.manual_seed(0)
    whole = espnetv2(CLASSES, width=0.5).eval()
    less = espnetv2(CLASSES - 1, width=0.5, background=True).eval()
    load_weights(less, whole.state_dict())
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(less(images), whole(images)[:, :-1])
    with pytest.raises(WeightsError, match="checkpoint has 5 classes, the network 4"):
        load_weights(espnetv2(CLASSES - 1, width=0.5), whole.state_dict())


def test_activations_of_the_files_that_are_never_called():
    network = espnetv2(CLASSES, width=0.5)
    state = {
        **network.state_dict(),
        **{f"base_net.level{i}_0.eesp.module_act.weight": torch.rand(16) for i in (2, 3, 4)},
    }
    assert load_weights(network, state) == []


def picture(height, width):
    """Waves in [-2, 2], which anyone can draw."""
    y, x = torch.arange(height)[:, None], torch.arange(width)[None]
    return torch.stack([2 * torch.sin(y / (7 + c) + x / (11 + 2 * c)) for c in range(3)])[None]


# From the authors' code (EdgeNets) with their files: the mean of each class's logits over a picture of 128x256.
MEANS = {
    0.5: [
        -8.349, -13.0243, 9.4298, 17.9198, 17.134, -4.8183, -8.4327, 3.0569, 0.0778, -10.847,
        8.4538, -9.8082, -22.3527, 14.4822, 5.861, 17.4548, 23.8051, -21.0973, -16.2757,
    ],
    2.0: [
        -9.0104, -7.8794, -0.3901, -6.0984, -2.1396, 1.6176, 8.3356, 3.9961, -0.3843, -0.6392,
        -4.7015, 4.5159, 6.5378, 0.0052, -0.1883, 5.1471, 4.6384, -1.2748, -2.1473,
    ],
}  # fmt: skip


@pytest.mark.parametrize("width", sorted(MEANS))
def test_published_files_give_the_authors_logits(shared, width):
    network = espnetv2(19, width=width, background=True).eval()
    file = f"checkpoints/espnetv2_cityscapes/espnetv2_s_{width}_city_1024x512.pth"
    assert load_weights(network, shared / file) == []
    with torch.no_grad():
        means = network(picture(128, 256))[0].mean(dim=(1, 2))
    torch.testing.assert_close(means, torch.tensor(MEANS[width]), rtol=1e-4, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "expected"), [(0.5, 0.478), (1.5, 0.637)])
def test_published_files_see_streets(shared, width, expected):
    """mIoU over the classes that occur in five images of training, halved; see docs/models.md."""
    network = espnetv2(19, width=width, background=True).eval()
    file = f"checkpoints/espnetv2_cityscapes/espnetv2_s_{width}_city_1024x512.pth"
    load_weights(network, shared / file)
    tapped, matrix = Taps(network), ConfusionMatrix(19)
    reader = Cityscapes(shared / "data" / "cityscapes_mini", "train")
    for i in range(len(reader)):
        sample = reader.read(i)
        image = Image.fromarray(sample.image).resize((1024, 512), Image.Resampling.BILINEAR)
        images = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            classes = tapped(images).prediction.argmax(1)[0]
        classes = classes.repeat_interleave(2, 0).repeat_interleave(2, 1)
        matrix.update(classes, torch.from_numpy(sample.target))
    counts = matrix.counts.double()
    occurs = counts.sum(1) > 0
    assert int(occurs.sum()) == 16
    iou = counts.diag() / (counts.sum(0) + counts.sum(1) - counts.diag())
    assert iou[occurs].mean().item() == pytest.approx(expected, abs=2e-3)
