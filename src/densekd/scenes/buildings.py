"""Facades: textures painted flat in metres, then hung on planes in space."""

from dataclasses import dataclass

import cv2
import numpy as np

from densekd.scenes import textures
from densekd.scenes.canvas import Canvas, shade
from densekd.scenes.classes import BUILDING
from densekd.scenes.light import Light

_DOWN = np.array([0.0, -1.0, 0.0])

# Wall colours, on purpose also those of road, sky, leaves and lawns.
_WALLS = np.array(
    [
        (150, 82, 66), (172, 120, 92), (196, 176, 142), (214, 204, 186), (120, 120, 122),
        (92, 94, 98), (164, 170, 176), (150, 178, 204), (126, 142, 108), (86, 108, 74),
        (204, 170, 110), (180, 140, 140), (222, 222, 220), (108, 74, 58), (132, 152, 160),
    ],
    dtype=np.float32,
)  # fmt: skip


@dataclass(frozen=True)
class Facade:
    """What a wall looks like; every number is drawn here, none while painting."""

    wall: np.ndarray
    seed: int
    storey: float
    bay: float
    window: tuple[float, float]  # share of the bay and of the storey that is glass
    glass: np.ndarray
    brick: bool
    shop: bool
    posters: int


def make_facade(rng: np.random.Generator, light: Light) -> Facade:
    curtain_wall = rng.random() < 0.2
    wall = _WALLS[rng.integers(len(_WALLS))] * (1 + rng.normal(0, 0.07, 3))
    # Glass shows the sky, a dark room, or a lit one.
    drawn = rng.random()
    glass = 0.5 * light.horizon + 20 if drawn < 0.45 else np.array([46, 52, 60]) + 40 * drawn
    return Facade(
        wall=wall * rng.uniform(0.75, 1.1),
        seed=int(rng.integers(2**62)),
        storey=rng.uniform(2.7, 3.6),
        bay=rng.uniform(1.2, 2.0) if curtain_wall else rng.uniform(1.8, 3.6),
        window=(0.88, 0.84) if curtain_wall else (rng.uniform(0.35, 0.65), rng.uniform(0.4, 0.65)),
        glass=glass,
        brick=bool(rng.random() < 0.45),
        shop=bool(rng.random() < 0.4),
        posters=int(rng.integers(0, 2)),
    )


def paint_facade(facade: Facade, wide: float, tall: float, per_metre: float) -> np.ndarray:
    """The wall as a texture (rows, columns, 3) uint8 of wide x tall metres, top row first."""
    rng = np.random.Generator(np.random.PCG64(facade.seed))
    rows, columns = max(round(tall * per_metre), 4), max(round(wide * per_metre), 4)
    start = tuple(rng.random(2))
    span = 9 * tall, 9 * wide
    noise = textures.crop("grain", start, span, (rows, columns))
    grime = textures.crop("stain", start, (3 * tall, 3 * wide), (rows, columns))
    image = textures.tint(facade.wall, 0.09 * noise + 0.09 * grime, 1.0)
    if facade.brick and per_metre > 9:
        image[:: max(int(0.22 * per_metre), 2)] = shade(facade.wall, 0.8)

    def box(x0: float, x1: float, y0: float, y1: float, colour) -> None:
        """A rectangle in metres; y is the height above ground."""
        first = int(x0 * per_metre), int((tall - y1) * per_metre)
        last = int(x1 * per_metre), int((tall - y0) * per_metre)
        cv2.rectangle(image, first, last, shade(colour, 1.0), cv2.FILLED)

    storeys, bays = int(tall / facade.storey), max(int(wide / facade.bay), 1)
    bay = wide / bays
    share_x, share_y = facade.window
    sizes = rng.random((storeys + 1, bays, 2)).tolist()
    glass = [shade(facade.glass, 0.65 + step / 16) for step in range(7)] + [(226, 196, 130)]
    frame = facade.wall * (1.25 if rng.random() < 0.6 else 0.6)
    for storey in range(storeys):
        ground_floor = storey == 0
        for column in range(bays):
            drawn, blind = sizes[storey][column]
            left = (column + 0.5 - share_x / 2) * bay
            low = storey * facade.storey + (0.45 - share_y / 2 + 0.1) * facade.storey
            right, high = left + share_x * bay, low + share_y * facade.storey
            if ground_floor and drawn < 0.3:
                box(left, min(left + 1.0, right), 0.0, 2.1, facade.wall * (0.35 + 0.5 * blind))
                continue
            pane = glass[int(8 * drawn)]
            if per_metre <= 6:  # too far for frames
                first = int(left * per_metre), int((tall - high) * per_metre)
                last = int(right * per_metre), int((tall - low) * per_metre)
                cv2.rectangle(image, first, last, pane, cv2.FILLED)
                continue
            box(left - 0.12, right + 0.12, low - 0.12, high + 0.12, frame)
            box(left, right, low, high, pane)
            if blind > 0.6:
                box(left, right, high - (blind - 0.5) * (high - low), high, frame * 0.9)
            if share_x < 0.8:
                middle = 0.5 * (left + right)
                box(middle - 0.04, middle + 0.04, low, high, frame)
    if per_metre <= 3:  # too far to tell more
        return image
    if facade.shop and tall > 4:
        _paint_shop(box, rng, facade, wide)
    for _ in range(facade.posters):
        _paint_poster(box, rng, wide)
    for _ in range(rng.integers(0, 3)):  # drain pipes: as thin and grey as poles
        at = rng.uniform(0, wide)
        box(at, at + 0.11, 0, tall, facade.wall * rng.uniform(0.45, 0.85))
    return image


def _paint_shop(box, rng: np.random.Generator, facade: Facade, wide: float) -> None:
    """A shop front with its name board, awning and dummies in the window."""
    box(0.3, wide - 0.3, 0.4, 2.5, facade.glass * 0.6)
    board = rng.uniform(30, 230, 3)
    box(0.2, wide - 0.2, 2.5, 3.15, board)
    letter = 255 - board
    for at in np.arange(0.8, wide - 1.0, 0.55):
        if rng.random() < 0.75:
            box(at, at + 0.32, 2.65, 3.0, letter)
    for _ in range(rng.integers(0, 4)):
        _paint_figure(box, rng, rng.uniform(0.5, max(wide - 1, 0.6)), 0.45, 1.6)


def _paint_poster(box, rng: np.random.Generator, wide: float) -> None:
    """A poster with a person, a car or a landscape: building by place, not by appearance."""
    size = rng.uniform(1.2, 2.8)
    x, y = rng.uniform(0, max(wide - size, 0.1)), rng.uniform(0.6, 2.4)
    box(x, x + size, y, y + 1.3 * size, rng.uniform(120, 250, 3))
    kind = rng.random()
    if kind < 0.45:
        _paint_figure(box, rng, x + size * 0.5, y + 0.05, 1.2 * size)
    elif kind < 0.8:
        body = rng.uniform(20, 230, 3)
        box(x + 0.1 * size, x + 0.9 * size, y + 0.3 * size, y + 0.6 * size, body)
        box(x + 0.3 * size, x + 0.7 * size, y + 0.6 * size, y + 0.85 * size, body * 0.5)
        for wheel in (0.2, 0.65):
            box(
                x + wheel * size,
                x + (wheel + 0.15) * size,
                y + 0.2 * size,
                y + 0.36 * size,
                (25,) * 3,
            )
    else:
        box(x, x + size, y, y + 0.5 * size, (84, 116, 58))
        box(x, x + size, y + 0.5 * size, y + 1.3 * size, (130, 170, 215))


def _paint_figure(box, rng: np.random.Generator, x: float, y: float, tall: float) -> None:
    """A standing person in boxes, feet at (x, y)."""
    legs, shirt = rng.uniform(20, 160, 3), rng.uniform(30, 240, 3)
    box(x - 0.12 * tall, x + 0.12 * tall, y, y + 0.48 * tall, legs)
    box(x - 0.16 * tall, x + 0.16 * tall, y + 0.45 * tall, y + 0.84 * tall, shirt)
    box(x - 0.07 * tall, x + 0.07 * tall, y + 0.85 * tall, y + tall, (196, 150, 122))


def hang_wall(
    canvas: Canvas,
    start: np.ndarray,
    stop: np.ndarray,
    tall: float,
    facade: Facade,
    brightness: float,
    shadow: tuple[float, float] | None = None,
    peak: float = 0.0,
) -> None:
    """A wall over the ground line start..stop, each (X, Z), seen with `start` on its left.

    Args:
        shadow: fractions (0..1) of the height at its left and right end below which the wall
            lies in the shadow of what stands opposite.
        peak: metres of a gable above `tall`; 0 for a level top.
    """
    line = np.array([stop[0] - start[0], 0.0, stop[1] - start[1]])
    wide = float(np.linalg.norm(line))
    corner = np.array([start[0], tall + peak, start[1]])

    def paint(per_metre: float) -> tuple[np.ndarray, np.ndarray | None]:
        texture = paint_facade(facade, wide, tall + peak, per_metre)
        texture = cv2.convertScaleAbs(texture, alpha=brightness)
        rows, columns = texture.shape[:2]
        if shadow is not None:
            dark = np.zeros((rows, columns), np.uint8)
            edge = [(0, rows * (1 - shadow[0])), (columns, rows * (1 - shadow[1]))]
            outline = np.array([*edge, (columns, rows), (0, rows)]).astype(np.int32)
            cv2.fillPoly(dark, [outline], 1)
            cv2.copyTo(cv2.convertScaleAbs(texture, alpha=0.62), dark, texture)
        if not peak:
            return texture, None
        solid = np.zeros((rows, columns), np.uint8)
        eaves = rows * peak / (tall + peak)
        outline = [(0, rows), (0, eaves), (columns / 2, 0), (columns, eaves), (columns, rows)]
        cv2.fillPoly(solid, [np.array(outline).astype(np.int32)], 1)
        return texture, solid

    canvas.textured_quad(corner, line / wide, _DOWN, (wide, tall + peak), paint, BUILDING)


def draw_roof(
    canvas: Canvas, start: np.ndarray, stop: np.ndarray, back: np.ndarray, tall: float, rise: float,
    colour: np.ndarray, noise_at: tuple[float, float],
) -> None:  # fmt: skip
    """A sloped roof from the wall's top edge up and backwards by `back` (X, Z) metres."""
    corner = np.array([start[0] + back[0], tall + rise, start[1] + back[1]])
    line = np.array([stop[0] - start[0], 0.0, stop[1] - start[1]])
    wide = float(np.linalg.norm(line))
    slope = np.array([-back[0], -rise, -back[1]])
    length = float(np.linalg.norm(slope))

    def paint(per_metre: float) -> tuple[np.ndarray, None]:
        size = max(round(length * per_metre), 3), max(round(wide * per_metre), 3)
        noise = textures.crop("grain", noise_at, (6 * length, 6 * wide), size)
        return textures.tint(colour, noise, 0.12), None

    canvas.textured_quad(corner, line / wide, slope / length, (wide, length), paint, BUILDING)
