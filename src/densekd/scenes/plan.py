"""Where everything stands: the street's widths, its row of plots, and the things along it.

Nothing is drawn here, and nothing here depends on the picture's size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from densekd.scenes.classes import SIDEWALK, VEGETATION
from densekd.scenes.ground import Street

Add = Callable[..., None]  # kind, distance from the middle, Z, size
Clear = Callable[[float], bool]  # whether a Z is off the crossing street


@dataclass(frozen=True)
class Plot:
    """A piece of the building line on one side: a building, or a yard (lawn or paved)."""

    side: int  # 0 left, 1 right
    z0: float
    z1: float
    tall: float  # 0: a yard
    setback: float
    yard: int  # label of a yard's ground
    roof: float  # rise of a sloped roof, 0: flat
    hedge: bool


@dataclass(frozen=True)
class Thing:
    """Something that stands on the ground at (x, z)."""

    kind: str
    x: float
    z: float
    size: float  # metres of a tree or bush; heading in radians of a car; side of a pole
    seed: int


def plan_street(rng: np.random.Generator, built_up: float) -> tuple[Street, list[Plot]]:
    """Widths, bend, crossing and the row of plots on both sides."""
    half_width = rng.uniform(3.0, 6.5)
    sidewalk = tuple(rng.uniform(1.6, 4.2, 2))
    verge = tuple(np.where(rng.random(2) < 0.22, rng.uniform(0.8, 2.2, 2), 0.0).tolist())
    bend = rng.normal(0.0, 0.0022) if rng.random() < 0.6 else 0.0
    end = rng.uniform(32, 60) if rng.random() < 0.3 else rng.uniform(60, 110)
    crossing_at, crossing_wide, zebra_at = (
        rng.uniform(12, 34),
        rng.uniform(6, 11),
        rng.uniform(7, 26),
    )
    has_crossing, has_zebra = rng.random(2) < (0.35, 0.3)
    crossing = (crossing_at, crossing_at + crossing_wide) if has_crossing else None
    zebra = (zebra_at, zebra_at + 3.2) if has_zebra else None
    if crossing and zebra:
        zebra = (crossing_at - 4.2, crossing_at - 1.2)
    street = Street(half_width, sidewalk, verge, bend, end, crossing, zebra)

    low, high = (3.5, 7.5) if built_up < 0.35 else (6.0, 13.0) if built_up < 0.75 else (10.0, 24.0)
    plots: list[Plot] = []
    for side in (0, 1):
        z = 2.2
        while z < end - 1:
            length = rng.uniform(6.0, 17.0)
            tall, setback, is_yard, lawn, roof, hedge = (
                rng.uniform(low, high),
                max(0.0, rng.normal(0.0, 1.0)),
                rng.random() < 0.34 - 0.2 * built_up,
                rng.random() < 0.7,
                rng.uniform(1.5, 3.2) if rng.random() < 0.9 - built_up else 0.0,
                rng.random() < 0.45,
            )
            stop = min(z + length, end)
            if crossing and z < crossing[0] + 0.5 and stop > crossing[0] - 2.0:
                stop = crossing[0] - 2.0
            if stop - z > 2.0:
                yard = VEGETATION if lawn else SIDEWALK
                tall = 0.0 if is_yard else tall
                plots.append(Plot(side, z, stop, tall, setback, yard, roof, hedge))
                if is_yard:
                    street.yards[side].append((z, stop, yard))
            z = stop
            if crossing and stop == crossing[0] - 2.0:
                z = crossing[1] + 2.0
    return street, plots


def front_line(street: Street, plot: Plot) -> tuple[np.ndarray, np.ndarray]:
    """Ground positions (X, Z) of the near and the far end of a plot's front."""
    sign = 1 if plot.side else -1
    reach = sign * (street.front(plot.side) + (plot.setback if plot.tall else 0.0))
    near, far = (np.array([street.middle(z) + reach, z]) for z in (plot.z0, plot.z1))
    return near, far


def place_things(
    rng: np.random.Generator, street: Street, plots: list[Plot], built_up: float
) -> list[Thing]:
    """All trees, poles, cars and people of the street."""
    things: list[Thing] = []
    reach = min(street.end - 2.0, 75.0)

    def add(kind: str, across: float, z: float, size: float = 0.0) -> None:
        """`across` is measured from the street's middle."""
        seed = int(rng.integers(2**62))
        if 2.0 < z < reach:
            things.append(Thing(kind, float(street.middle(z) + across), float(z), size, seed))

    def clear(z: float) -> bool:
        crossing = street.crossing
        return crossing is None or not crossing[0] - 1.0 < z < crossing[1] + 1.0

    for side in (0, 1):
        sign = 1 if side else -1
        kerb, verge, walk = street.half_width, street.verge[side], street.sidewalk[side]
        _place_greenery(rng, add, clear, sign, kerb, verge, walk, reach)
        _place_poles(rng, add, clear, sign, kerb, reach)
        _place_parked(rng, add, clear, street, sign, reach)
        for _ in range(rng.poisson(4.0 + 3.0 * built_up)):
            z = 5.0 + (reach - 8.0) * rng.random() ** 2.2
            across = sign * (kerb + verge + rng.uniform(0.3, max(walk - 0.3, 0.4)))
            for member in range(1 + (rng.random() < 0.35) + (rng.random() < 0.12)):
                add("person", across + 0.55 * member * sign, z + rng.uniform(-0.4, 0.4))
    for plot in plots:
        if not plot.tall:
            _place_yard(rng, add, street, plot)
    _place_moving(rng, add, street, reach)
    return things


def _place_greenery(
    rng: np.random.Generator, add: Add, clear: Clear, sign: int, kerb: float, verge: float, walk: float, reach: float
) -> None:  # fmt: skip
    """A row of trees near the kerb, or none; planters and bushes."""
    spacing, tall = rng.uniform(6.0, 14.0), rng.uniform(3.5, 9.0)
    if rng.random() < 0.5:
        for z in np.arange(rng.uniform(5.0, 14.0), reach, spacing):
            across = kerb + (0.5 * verge if verge else min(0.7, 0.3 * walk))
            size = tall * rng.uniform(0.8, 1.2)
            if clear(z) and rng.random() < 0.85:
                add("tree", sign * across, z + rng.uniform(-1, 1), size)
    for _ in range(rng.poisson(1.6)):
        z = rng.uniform(6.0, reach)
        if clear(z):
            add("bush", sign * (kerb + verge + walk - 0.5), z, rng.uniform(0.4, 1.1))


def _place_poles(
    rng: np.random.Generator, add: Add, clear: Clear, sign: int, kerb: float, reach: float
) -> None:
    """Lamps at a steady distance, sign posts and masts anywhere, bollards in rows."""
    lamp_gap, first = rng.uniform(14.0, 26.0), rng.uniform(6.0, 20.0)
    if rng.random() < 0.7:
        for z in np.arange(first, reach, lamp_gap):
            add("lamp", sign * (kerb + 0.45), z, -sign)
    for _ in range(rng.poisson(2.3)):
        z = 5.0 + (reach - 5.0) * rng.random() ** 2.0
        add("post", sign * (kerb + rng.uniform(0.3, 0.9)), z, -sign)
    for _ in range(rng.poisson(0.6)):
        add("mast", sign * (kerb + rng.uniform(0.3, 0.8)), rng.uniform(6.0, 40.0), -sign)
    if rng.random() < 0.25:
        start, gap = rng.uniform(5.0, 15.0), rng.uniform(1.3, 2.2)
        for z in start + gap * np.arange(rng.integers(4, 10)):
            if clear(z):
                add("bollard", sign * (kerb + 0.35), z, -sign)


def _place_parked(
    rng: np.random.Generator, add: Add, clear: Clear, street: Street, sign: int, reach: float
) -> None:
    """Cars along the kerb with gaps."""
    density = rng.random() * 0.9 - 0.15
    for z in np.arange(rng.uniform(6.0, 12.0), reach, 5.6):
        drawn, off, drift = rng.random(3)
        if drawn < density and clear(z - 2) and clear(z + 2) and street.half_width > 3.4:
            heading = street.bend * z + (0.0 if sign > 0 else np.pi) + 0.08 * (drift - 0.5)
            add("car", sign * (street.half_width - 1.0 - 0.25 * off), z, heading)


def _place_yard(rng: np.random.Generator, add: Add, street: Street, plot: Plot) -> None:
    """Trees on a lawn, cars on a paved yard."""
    sign = 1 if plot.side else -1
    inner = street.front(plot.side)
    for _ in range(rng.integers(1, 6)):
        z, back = rng.uniform(plot.z0 + 1, plot.z1), inner + rng.uniform(1.5, 9.0)
        if plot.yard == VEGETATION or rng.random() < 0.4:
            add("tree" if rng.random() < 0.75 else "bush", sign * back, z, rng.uniform(1.5, 7.0))
        else:
            add("car", sign * (back + 1.0), z, rng.choice((0.5, -0.5)) * np.pi + rng.normal(0, 0.1))


def _place_moving(rng: np.random.Generator, add: Add, street: Street, reach: float) -> None:
    """Traffic on both lanes, on the crossing street, and people on the road."""
    lane = 0.5 * street.half_width if street.half_width < 4.6 else 1.8
    for sign in (-1, 1):
        z = rng.uniform(9.0, 28.0)
        for _ in range(rng.poisson(1.5)):
            heading = street.bend * z + (0.0 if sign > 0 else np.pi)
            add("car", sign * lane + rng.normal(0, 0.2), z, heading + rng.normal(0, 0.03))
            z += rng.uniform(8.0, 22.0)
    if street.crossing is not None:
        for _ in range(rng.poisson(1.2)):
            share = (0.3, 0.7)[int(rng.random() < 0.5)]
            z = street.crossing[0] + share * (street.crossing[1] - street.crossing[0])
            heading = 0.5 * np.pi if share < 0.5 else -0.5 * np.pi
            add("car", rng.uniform(-14, 14), z, heading)
    walkers = rng.poisson(2.2) if street.zebra is not None else rng.poisson(0.45)
    for _ in range(walkers):
        z = rng.uniform(*street.zebra) if street.zebra is not None else rng.uniform(9.0, 35.0)
        add("person", rng.uniform(-1, 1) * street.half_width, z)
