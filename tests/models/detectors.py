"""What every detector of ours must do. A subclass names a builder and its arguments."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod

import pytest
import torch
from torch import Tensor

from densekd.models import Taps, load_weights, save_weights
from densekd.models._pyramid import Detector
from densekd.types import DetectorOutput

CLASSES = 5


@functools.cache
def build_once(tester: type[DetectorTester]) -> Detector:
    torch.manual_seed(0)
    return tester().build()


class DetectorTester(ABC):
    """Subclass as ``Test<Network>``; each is built once."""

    strides: tuple[int, ...] = (8, 16, 32)
    kind = "fcos"
    anchors = 1  # a location

    @abstractmethod
    def build(self, in_channels: int = 3) -> Detector:
        """The network with `CLASSES` classes."""

    @pytest.fixture
    def network(self) -> Detector:
        return build_once(type(self))

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("size", [(64, 64), (65, 97)])
    def test_output(self, network: Detector, size: tuple[int, int], training: bool) -> None:
        with torch.no_grad():
            raw = network.train(training)(torch.rand(2, 3, *size))
        assert isinstance(raw, DetectorOutput)
        assert raw.kind == self.kind
        assert network.num_classes == CLASSES
        a = self.anchors
        for i, stride in enumerate(self.strides):
            h, w = (-(-side // stride) for side in size)
            assert raw.logits[i].shape == (2, a * CLASSES, h, w)
            assert raw.boxes[i].shape == (2, a * 4, h, w)
            assert raw.anchors[i].shape == (h * w * a, 4)
            if raw.centerness is not None:
                assert raw.centerness[i].shape == (2, 1, h, w)
            # Location-major: the anchors of the second location of the second row lie around its corner.
            middle = raw.anchors[i].view(h, w, a, 4)[1 % h, 1 % w]
            centre = (middle[:, :2] + middle[:, 2:]) / 2
            expected = torch.tensor([stride * (1 % w), stride * (1 % h)]).float().expand(a, 2)
            assert torch.allclose(centre, expected)
        assert len(raw.logits) == len(self.strides)
        assert (raw.centerness is not None) == (self.kind == "fcos")

    def test_features_are_what_it_says(self, network: Detector) -> None:
        info = {f.path: f for f in network.feature_info}
        maps: dict[str, Tensor] = {}

        def record(path: str, output: object) -> None:
            values = output if isinstance(output, list) else [output]
            for i, value in enumerate(values):
                maps[path if not isinstance(output, list) else f"{path}:{i}"] = value

        handles = [
            network.get_submodule(p).register_forward_hook(
                lambda module, args, output, p=p: record(p, output)
            )
            for p in {path.partition(":")[0] for path in info}
        ]
        with torch.no_grad():
            network.eval()(torch.rand(1, 3, 64, 96))
        for handle in handles:
            handle.remove()
        for path, feature in info.items():
            assert maps[path].shape[1] == feature.channels, path
            assert maps[path].shape[-1] == -(-96 // feature.stride), path

    def test_the_pyramid_is_one_tap(self, network: Detector) -> None:
        with torch.no_grad():
            output = Taps(network.eval(), {"levels": network.pair_wise_tap})(
                torch.rand(1, 3, 64, 64)
            )
        assert isinstance(output.prediction, DetectorOutput)
        assert [x.shape[-1] for x in output.features["levels"]] == [
            -(-64 // s) for s in self.strides
        ]

    def test_training_reaches_every_parameter(self, network: Detector) -> None:
        network.train().zero_grad(set_to_none=True)
        raw = network(torch.rand(2, 3, 64, 64))
        # Not the boxes as they are: FCOS cuts them at 0, where an untrained one may have no gradient.
        total = sum(x.square().mean() for x in [*raw.logits, *raw.boxes, *(raw.centerness or [])])
        total.backward()
        for name, parameter in network.named_parameters():
            # One without a gradient would stop DistributedDataParallel.
            assert parameter.grad is not None or not parameter.requires_grad, name
        network.zero_grad(set_to_none=True)

    def test_four_channels(self) -> None:
        network = self.build(in_channels=4).eval()
        assert network.input_spec.channels == 4
        with torch.no_grad():
            raw = network(network.input_spec.normalize(torch.rand(1, 4, 64, 64)))
        assert raw.logits[0].shape[1] == self.anchors * CLASSES

    def test_weights_come_back(self, network: Detector, tmp_path) -> None:
        save_weights(network, tmp_path / "w.safetensors", {"a": "b"})
        torch.manual_seed(1)
        other = self.build()
        assert load_weights(other, tmp_path / "w.safetensors") == []
        for key, value in network.state_dict().items():
            assert torch.equal(value, other.state_dict()[key]), key
