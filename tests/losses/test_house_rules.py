"""The rules of the house for the losses whose own test files hold them one by one, and for maps of one channel."""

from functools import partial

import pytest

from densekd.losses import (
    attention_transfer,
    channel_wise,
    feature_mimic,
    fitnet,
    pair_wise,
    pixel_wise,
)
from tests.losses.house_rules import check_house_rules


@pytest.mark.parametrize(
    ("loss", "channels"),
    [
        (feature_mimic, 5),
        (pixel_wise, 5),
        (partial(pixel_wise, convention="cirkd", temperature=4.0), 5),
        (partial(pair_wise, granularity=1), 5),
        (partial(pair_wise, granularity=1, affinity="sigmoid"), 5),
        (partial(pair_wise, granularity=1, connection_range=3), 5),
        (feature_mimic, 1),
        (fitnet, 1),
        (attention_transfer, 1),
        (channel_wise, 1),
        (partial(pixel_wise, form="sigmoid"), 1),
    ],
)
def test_house_rules(loss, channels):
    check_house_rules(lambda s, t, m, y: loss(s, t, mask=m), c=channels)
