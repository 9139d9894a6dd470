from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
import torchvision
from torch import Tensor, nn

from densekd.errors import UserError
from densekd.models import Taps, espnet_c, list_taps, pspnet_resnet18
from densekd.models.outputs import find_prediction
from densekd.types import DenseOutput, InputSpec


class Toy(nn.Module):
    """Returns what it is told to, and uses `twice` two times."""

    def __init__(self, wrap=lambda logits: logits) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.twice = nn.Conv2d(4, 4, 1)
        self.unused = nn.Conv2d(4, 4, 1)
        self.levels = Levels()
        self.head = nn.Conv2d(4, 2, 1)
        self.wrap = wrap

    def forward(self, x: Tensor):
        x = self.twice(self.twice(self.stem(x)))
        return self.wrap(self.head(self.levels(x)["fine"]["x"]))


class Levels(nn.Module):
    def forward(self, x: Tensor) -> dict:
        return {"fine": {"x": x, "pair": (x + 1, x + 2)}, "coarse": x[..., ::2, ::2]}


class Logits:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


IMAGES = torch.rand(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("wrap", "aux"),
    [
        (lambda y: y, False),
        (lambda y: {"out": y}, False),
        (lambda y: {"out": y, "aux": y + 1}, True),
        (Logits, False),
        (lambda y: {"logits": y, "loss": None}, False),
        (lambda y: (y, None), False),
        (lambda y: [y, y + 1], False),
    ],
)
def test_known_outputs(wrap, aux: bool) -> None:
    output = Taps(Toy(wrap))(IMAGES)
    assert isinstance(output, DenseOutput)
    assert output.prediction.shape == (2, 2, 4, 4)
    assert (output.aux is not None) == aux
    assert output.features == {}


def test_unknown_output_and_the_way_out() -> None:
    network = Toy(lambda y: {"masks": {"main": [y]}})
    with pytest.raises(UserError, match=r"dict with keys masks.*prediction="):
        Taps(network)(IMAGES)
    assert Taps(network, prediction="masks.main.0")(IMAGES).prediction.shape == (2, 2, 4, 4)
    with pytest.raises(UserError, match="no 'other' in a dict with keys masks"):
        Taps(network, prediction="other")(IMAGES)
    with pytest.raises(UserError, match="NoneType"):
        find_prediction(None)


def test_paths_into_outputs() -> None:
    taps = {"x": "levels:fine.x", "second": "levels:fine.pair.1", "coarse": "levels:coarse"}
    features = Taps(Toy(), taps)(IMAGES).features
    torch.testing.assert_close(features["second"], features["x"] + 2)
    assert features["coarse"].shape == (2, 4, 2, 2)


def test_errors_name_the_tap() -> None:
    with pytest.raises(UserError, match=r"no module 'hed'; near it are head"):
        Taps(Toy(), {"x": "hed"})
    with pytest.raises(UserError, match="tap ''"):
        Taps(Toy(), {"x": ""})
    with pytest.raises(UserError, match="tap 'unused' never fired"):
        Taps(Toy(), {"x": "unused"})(IMAGES)
    with pytest.raises(UserError, match=r"tap 'levels' gives a dict .* 'levels:fine'"):
        Taps(Toy(), {"x": "levels"})(IMAGES)
    with pytest.raises(UserError, match=r"tap 'levels:fine\.pair\.7': no '7' in a tuple of 2"):
        Taps(Toy(), {"x": "levels:fine.pair.7"})(IMAGES)


def test_auxiliary_head_in_eval_mode_never_fires() -> None:
    taps = Taps(pspnet_resnet18(2, width=0.125), {"x": "dsn"})
    assert taps.train()(torch.rand(2, 3, 32, 32)).features["x"].shape[1] == 2
    with pytest.raises(UserError, match="never fired"):
        taps.eval()(torch.rand(2, 3, 32, 32))


def test_last_call_counts() -> None:
    network = Toy()
    x = network.twice(network.twice(network.stem(IMAGES)))
    torch.testing.assert_close(Taps(network, {"x": "twice"})(IMAGES).features["x"], x)


def test_images_are_normalised() -> None:
    network = nn.Identity()
    spec = InputSpec(mean=(10, 20, 30), std=(2, 2, 2), order="bgr", range=255.0)
    given = Taps(network, input_spec=spec)(IMAGES).prediction
    torch.testing.assert_close(given[:, 0], (IMAGES[:, 2] * 255 - 10) / 2)
    torch.testing.assert_close(Taps(network)(IMAGES).prediction, IMAGES)
    own = espnet_c(5, p=1, q=1).eval()
    torch.testing.assert_close(Taps(own)(IMAGES).prediction, own(own.input_spec.normalize(IMAGES)))


def test_gradients_flow_through_features() -> None:
    taps = Taps(Toy(), {"x": "stem"})
    taps(IMAGES).features["x"].sum().backward()
    assert taps.model.stem.weight.grad is not None
    with torch.no_grad():
        assert not taps(IMAGES).features["x"].requires_grad


def test_nothing_outlives_the_forward() -> None:
    taps = Taps(Toy(), {"x": "stem"})
    output = taps(IMAGES)
    seen = weakref.ref(output.features["x"])
    del output
    gc.collect()
    assert seen() is None
    taps.model(IMAGES)  # a bare call records nothing
    assert all(r.value is None for r in taps.recorders.values())
    with pytest.raises(UserError):
        Taps(taps.model, {"x": "unused"})(IMAGES)
    assert all(r.value is None for r in taps.recorders.values())


def test_deep_copies_have_buffers_of_their_own() -> None:
    taps = Taps(Toy(), {"x": "stem"})
    other = copy.deepcopy(taps)
    with torch.no_grad():
        other.model.stem.weight.zero_()
        other.model.stem.bias.zero_()
    assert other(IMAGES).features["x"].abs().sum() == 0
    assert taps(IMAGES).features["x"].abs().sum() > 0
    assert other.recorders["x"] is not taps.recorders["x"]


def test_two_wraps_of_one_network() -> None:
    network = Toy()
    one, two = Taps(network, {"x": "stem"}), Taps(network, {"y": "stem", "z": "head"})
    assert list(one(IMAGES).features) == ["x"]
    assert list(two(IMAGES).features) == ["y", "z"]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(backend: str) -> None:
    torch.manual_seed(0)
    taps = Taps(espnet_c(5, p=1, q=1).eval(), {"x": "b3"})
    expected = taps(IMAGES)
    keys = list(taps.state_dict())
    taps.compile(backend=backend)
    for _ in range(2):
        output = taps(IMAGES)
        torch.testing.assert_close(output.features["x"], expected.features["x"])
        torch.testing.assert_close(output.prediction, expected.prediction)
    assert list(taps.state_dict()) == keys
    assert taps.recorders["x"].value is None


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp"])
def test_torchvision(name: str) -> None:
    build = {"lraspp": "lraspp_mobilenet_v3_large"}.get(name, name)
    options = {} if name == "lraspp" else {"aux_loss": True}
    network = getattr(torchvision.models.segmentation, build)(
        weights=None, weights_backbone=None, num_classes=4, **options
    )
    layer = "backbone:low" if name == "lraspp" else "backbone:out"
    output = Taps(network.eval(), {"x": layer}, InputSpec())(torch.rand(1, 3, 64, 96))
    assert output.prediction.shape == (1, 4, 64, 96)
    assert output.features["x"].ndim == 4
    assert (output.aux is not None) == (name != "lraspp")


def test_torchvision_feature_pyramid() -> None:
    network = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None
    )
    output = Taps(network, {"p3": "fpn:0", "pool": "fpn:pool"}, prediction="0")(
        torch.rand(1, 3, 64, 64)
    )
    assert output.features["p3"].shape == (1, 256, 16, 16)
    assert output.features["pool"].shape == (1, 256, 1, 1)


def test_segmentation_models_pytorch() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    network = smp.Unet("resnet18", encoder_weights=None, classes=4)
    taps = Taps(network.eval(), {"x": "decoder", "deep": "encoder:5"}, InputSpec())
    output = taps(torch.rand(1, 3, 64, 64))
    assert output.prediction.shape == (1, 4, 64, 64)
    assert output.features["deep"].shape == (1, 512, 2, 2)


def test_list_taps() -> None:
    network = Toy().train()
    network.head.eval()
    rows = {row.path: row for row in list_taps(network, IMAGES)}
    assert list(rows) == [
        "stem",
        "twice",
        "levels:fine.x",
        "levels:fine.pair.0",
        "levels:fine.pair.1",
        "levels:coarse",
        "head",
    ]
    assert rows["stem"].kind == "Conv2d"
    assert rows["levels:coarse"].shape == (2, 4, 2, 2)
    assert rows["levels:coarse"].stride == 4
    assert network.training
    assert not network.head.training
    assert not network.stem._forward_hooks
    for path, row in rows.items():
        assert Taps(network, {"x": path})(IMAGES).features["x"].shape == row.shape


def test_a_forward_may_end_with_its_last_tap() -> None:
    network = Toy()
    heads: list[int] = []
    network.head.register_forward_hook(lambda *_: heads.append(1))
    taps = Taps(network, {"x": "twice", "stem": "stem"})
    whole = taps.eval()(IMAGES).features
    early = taps(IMAGES, prediction=False)
    assert early.prediction is None
    assert len(heads) == 1
    # The last of two runs, as ever.
    torch.testing.assert_close(early.features, whole)
    assert all(not r.on and r.value is None for r in taps.recorders.values())
    taps(IMAGES)
    assert len(heads) == 2
    taps.train()(IMAGES, prediction=False)
    assert len(heads) == 3


def test_a_forward_that_was_left_does_not_hide_a_tap_that_does_not_fire() -> None:
    taps = Taps(Toy(), {"x": "stem", "y": "unused"}).eval()
    for _ in range(2):
        with pytest.raises(UserError, match="never fired"):
            taps(IMAGES, prediction=False)
    assert Taps(Toy()).eval()(IMAGES, prediction=False).features == {}
