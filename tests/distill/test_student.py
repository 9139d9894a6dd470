"""The student with what its terms train and remember."""

import torch
from torch import nn

from densekd.distill.student import Student
from densekd.distill.term import Term, named_parameters
from densekd.losses import FeatureMimic
from densekd.models.taps import Taps
from densekd.types import DenseOutput
from tests.distill.helpers import make_task


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))


def mimic(adapter, source="wide"):
    return Term("mimic", FeatureMimic(), 1.0, source, source, adapter=adapter)


def test_a_term_compares_the_adapted_feature():
    network = make_network()
    adapter = nn.Conv2d(4, 7, 1)
    term = mimic(adapter)
    student = Student(Taps(network, {"wide": "0"}), [term])
    output = student(torch.rand(2, 3, 5, 6))
    assert output.prediction.shape == (2, 2, 5, 6)
    (adapted,) = term.student_maps(output, make_task())
    assert torch.equal(adapted, adapter(output.features["wide"]))
    assert student.model is network


def test_one_adapter_serves_all_levels():
    maps = [torch.rand(1, 3, 8, 8), torch.rand(1, 3, 4, 4)]
    output = DenseOutput(torch.zeros(1, 2, 8, 8), features={"fpn": maps})
    adapted = mimic(nn.Conv2d(3, 5, 1), "fpn").student_maps(output, make_task())
    assert [tuple(m.shape) for m in adapted] == [(1, 5, 8, 8), (1, 5, 4, 4)]


def test_adapters_are_no_part_of_the_network():
    network = make_network()
    keys = set(network.state_dict())
    student = Student(Taps(network, {"wide": "0"}), [mimic(nn.Conv2d(4, 7, 1))])
    assert set(network.state_dict()) == keys
    assert len(list(student.parameters())) == len(list(network.parameters())) + 2


def test_what_terms_train_has_names_and_stands_once():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, student, teacher, mask=None):
            return (self.scale * student - teacher).square().mean()

    loss = Learned()
    terms = [mimic(nn.Conv2d(4, 7, 1)), Term("a", loss), Term("b", loss)]
    names = [name for name, _ in named_parameters(terms)]
    assert names == ["adapters.mimic.weight", "adapters.mimic.bias", "terms.a.scale"]
