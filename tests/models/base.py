"""What every network of ours must do. A subclass names a builder and its arguments."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod

import pytest
import torch
from torch import Tensor, nn

from densekd.models import Taps, load_weights, save_weights
from densekd.types import InputSpec

CLASSES = 5


@functools.cache
def build_once(tester: type[ModelTester]) -> nn.Module:
    torch.manual_seed(0)
    return tester().build()


class ModelTester(ABC):
    """Subclass as ``Test<Network>``; each is built once."""

    stride = 8  # of the logits
    aux = True  # whether training gives auxiliary logits

    @abstractmethod
    def build(self, in_channels: int = 3) -> nn.Module:
        """The network with `CLASSES` classes."""

    @pytest.fixture
    def network(self) -> nn.Module:
        return build_once(type(self))

    def expect_near(self, given: torch.Size, size: tuple[int, int], stride: int) -> None:
        # Stems round differently (PSPNet's up, ConvNeXt's down): one off is allowed.
        for side, full in zip(given[-2:], size, strict=True):
            assert abs(side - -(-full // stride)) <= 1, (given, size, stride)

    @pytest.mark.parametrize("size", [(64, 64), (65, 97)])
    @pytest.mark.parametrize("batch", [1, 2])
    def test_logits(self, network: nn.Module, size: tuple[int, int], batch: int) -> None:
        with torch.no_grad():
            logits = network.eval()(torch.rand(batch, 3, *size))
        assert isinstance(logits, Tensor)
        assert logits.shape[:2] == (batch, CLASSES)
        assert network.num_classes == CLASSES
        self.expect_near(logits.shape, size, self.stride)

    @pytest.mark.parametrize("size", [(64, 64), (65, 97)])
    def test_features_are_what_it_says(self, network: nn.Module, size: tuple[int, int]) -> None:
        info = {f.path: f for f in network.feature_info}
        assert network.pair_wise_tap in info
        with torch.no_grad():
            output = Taps(network.eval(), {path: path for path in info})(torch.rand(1, 3, *size))
        for path, feature in info.items():
            assert output.features[path].shape[1] == feature.channels, path
            self.expect_near(output.features[path].shape, size, feature.stride)

    def test_training_reaches_every_parameter(self, network: nn.Module) -> None:
        network.train().zero_grad(set_to_none=True)
        output = network(torch.rand(2, 3, 64, 96))
        if self.aux:
            assert list(output) == ["out", "aux"]
            assert output["aux"].shape[:2] == (2, CLASSES)
            loss = output["out"].square().mean() + output["aux"].square().mean()
        else:
            loss = output.square().mean()
        loss.backward()
        # One without a gradient would stop DistributedDataParallel.
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        network.zero_grad(set_to_none=True)

    def test_batch_of_one_trains(self, network: nn.Module) -> None:
        output = network.train()(torch.rand(1, 3, 64, 64))
        assert (output["out"] if self.aux else output).isfinite().all()

    def test_four_channels(self) -> None:
        network = self.build(in_channels=4).eval()
        assert isinstance(network.input_spec, InputSpec)
        with torch.no_grad():
            output = Taps(network)(torch.rand(1, 4, 64, 64))
        assert output.prediction.shape[1] == CLASSES

    def test_weights_come_back(self, network: nn.Module, tmp_path) -> None:
        save_weights(network, tmp_path / "w.safetensors", {"a": "b"})
        torch.manual_seed(1)
        other = self.build()
        assert load_weights(other, tmp_path / "w.safetensors") == []
        for key, value in network.state_dict().items():
            assert torch.equal(value, other.state_dict()[key]), key
