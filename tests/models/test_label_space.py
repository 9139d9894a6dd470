"""Classes put together: the sums of probabilities, what is left out, and indices that do not fit."""

import pytest
import torch

from densekd.errors import UserError
from densekd.models.label_space import FLOOR, LabelSpace
from densekd.models.taps import Taps

LOGITS = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0)) * 3


def test_probabilities_are_summed_and_made_to_sum_to_one():
    space = LabelSpace([[4], [], [0, 2]], 5)
    p = LOGITS.softmax(1)
    kept = torch.stack([p[:, 4], torch.zeros(2, 3, 4), p[:, 0] + p[:, 2]], 1)
    merged = space(LOGITS)
    torch.testing.assert_close(merged.exp(), kept / kept.sum(1, keepdim=True), atol=1e-6, rtol=1e-5)
    assert (merged[:, 1] == FLOOR).all()
    assert space.left_over(LOGITS) == pytest.approx(float((p[:, 1] + p[:, 3]).mean()), rel=1e-5)


def test_all_classes_one_by_one_are_the_log_softmax():
    space = LabelSpace([[i] for i in range(5)])
    torch.testing.assert_close(space(LOGITS), LOGITS.log_softmax(1))
    assert space.left_over(LOGITS) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite(dtype):
    merged = LabelSpace([[0, 1], [], [2]])((LOGITS * 100).to(dtype))
    assert merged.dtype == dtype
    assert merged.isfinite().all()


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[0], [1, 0]], "index 0 stands twice"),
        ([[0], [5]], "index 5 is out of range; the network's are 0 to 4"),
        ([[-1], [0]], "index -1 is out of range"),
        ([[], []], "no class has an index"),
    ],
)
def test_indices_that_do_not_fit(groups, message):
    with pytest.raises(ValueError, match=message):
        LabelSpace(groups, 5)


def test_predictions_that_do_not_fit():
    for space, wanted in ((LabelSpace([[0]], 4), "4"), (LabelSpace([[7]]), "more than 7")):
        with pytest.raises(
            UserError, match=rf"shape \(2, 5, 3, 4\).*expected \(N, {wanted}, h, w\)"
        ):
            space(LOGITS)


def test_taps_leave_features_as_they_are():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.Conv2d(8, 5, 1))
    images = torch.rand(1, 3, 4, 4)
    plain = Taps(network, {"wide": "0"})(images)
    merged = Taps(network, {"wide": "0"}, label_space=LabelSpace([[0, 1], [2]]))(images)
    assert merged.prediction.shape == (1, 2, 4, 4)
    assert torch.equal(merged.features["wide"], plain.features["wide"])


def test_one_channel_of_a_yes_is_two_classes():
    z = LOGITS[:, :1]
    merged = LabelSpace([[-1], [0]], 1, "sigmoid")(z).exp()
    torch.testing.assert_close(merged[:, 1:], z.sigmoid())
    torch.testing.assert_close(merged[:, :1], 1 - z.sigmoid())


def test_several_yeses_are_the_distribution_of_at_most_one():
    p = LOGITS.double().sigmoid()
    # P(k alone) = p_k Π (1 - p_j), P(none) = Π (1 - p_j)
    none = (1 - p).prod(1, keepdim=True)
    alone = torch.cat([none * p / (1 - p), none], 1)
    wanted = alone / alone.sum(1, keepdim=True)
    space = LabelSpace([[-1], [0, 2], [1, 3, 4]], 5, "sigmoid")
    merged = space(LOGITS.double()).exp()
    torch.testing.assert_close(merged[:, 0], wanted[:, 5].clamp(min=1e-13), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(merged[:, 1], wanted[:, [0, 2]].sum(1), atol=1e-6, rtol=1e-4)
    assert space.left_over(LOGITS) == pytest.approx(0, abs=1e-6)
    # Without "none", exactly one is a yes.
    every = LabelSpace([[i] for i in range(5)], 5, "sigmoid")
    torch.testing.assert_close(every(LOGITS), LOGITS.log_softmax(1))
    assert every.left_over(LOGITS) == pytest.approx(float(wanted[:, 5].mean()), rel=1e-4)


def test_probabilities_stay_what_they_are():
    p = LOGITS.softmax(1)
    merged = LabelSpace([[0], [1, 2], [3], [4]], 5, "none")(p).exp()
    torch.testing.assert_close(merged[:, 1], p[:, 1] + p[:, 2])
    assert LabelSpace([[0], [1]], 2, "none")(torch.zeros(1, 2, 3, 3)).isfinite().all()
    with pytest.raises(ValueError, match="activation is 'tanh'; expected one of softmax"):
        LabelSpace([[0]], 1, "tanh")
