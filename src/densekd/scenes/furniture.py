"""What stands along a street: trees, bushes, hedges, poles and signs."""

import numpy as np

from densekd.scenes import textures
from densekd.scenes.canvas import Billboard, Canvas, shade
from densekd.scenes.classes import POLE, SIGN, VEGETATION
from densekd.scenes.light import Light

_ANGLE = np.arange(12) * (2 * np.pi / 12)
_RING = np.stack([np.cos(_ANGLE), np.sin(_ANGLE)], 1)


def leaf_colour(rng: np.random.Generator) -> np.ndarray:
    """Mostly greens; some autumn, some so grey or dark that only their shape tells."""
    base = ((74, 98, 46), (56, 84, 50), (98, 112, 52), (82, 92, 70), (150, 96, 44), (120, 82, 50))
    pick = rng.choice(6, p=(0.3, 0.22, 0.18, 0.14, 0.09, 0.07))
    return np.array(base[pick]) * rng.uniform(0.6, 1.15) * (1 + rng.normal(0, 0.06, 3))


def _leaves(
    board: Billboard, light: Light, colour: np.ndarray, start: tuple[float, float], span: float
) -> None:
    """Cover the whole sprite with leaves: `span` texels across the sprite's width."""
    rows, columns = board.mask.shape
    noise = textures.crop("leaf", start, (span * rows / columns, span), (rows, columns))
    # Lit from above: crowns are bright on top and dark below, which is how they read as round.
    slope = np.linspace(1.25, 0.7, rows, dtype=np.float32)[:, None]
    toned = colour * light.on(np.array([0.0, 1.0, 0.0]))
    board.colour[:] = textures.tint(toned, (1 + 0.42 * noise) * slope, 1.0)
    board.colour[:] = np.minimum(board.colour, 245)


def draw_tree(
    canvas: Canvas, x: float, z: float, tall: float, light: Light, rng: np.random.Generator
) -> None:
    """A tree of `tall` metres: a trunk and a ragged crown one can look through in places."""
    colour, start = leaf_colour(rng), tuple(rng.random(2))
    trunk = np.array([70, 58, 48]) * rng.uniform(0.6, 1.5)
    spread = tall * rng.uniform(0.24, 0.42)
    crown = tall * rng.uniform(0.3, 0.5)  # where the crown begins
    clumps = rng.random((11, 4))
    holes = rng.random() < 0.6
    bare = rng.random() < 0.08
    board = Billboard.at(canvas, x, z, -1.35 * spread, 1.35 * spread, tall)
    if board is None:
        return
    _leaves(board, light, colour * 0.8, start, 26 * spread)
    leaves = board.colour.copy()
    rise = tall - crown
    if not bare:
        for across, up, size, _ in clumps:
            centre = ((across - 0.5) * 1.5 * spread, crown + (0.2 + 0.62 * up) * rise)
            radius = (0.28 + 0.3 * size) * np.array([spread, 0.62 * rise])
            board.part(centre + _RING * radius * (0.85 + 0.25 * clumps[0, 3]), (0, 0, 0))
    if holes and not bare:
        rows, columns = board.mask.shape
        gaps = textures.crop(
            "leaf", start, (26 * spread * rows / columns, 26 * spread), (rows, columns)
        )
        board.mask &= (gaps > -1.35).view(np.uint8)
    board.colour[:] = leaves
    thick = 0.022 * tall
    stem = [
        (-thick, 0),
        (thick, 0),
        (0.6 * thick, crown + 0.4 * rise),
        (-0.6 * thick, crown + 0.4 * rise),
    ]
    shaded = shade(trunk, light.on(-canvas.camera.rotation[2]))
    if bare:
        for across, up, size, _ in clumps:
            foot = crown * (0.8 + 0.4 * size)
            tip = ((across - 0.5) * 1.6 * spread, crown + (0.3 + 0.7 * up) * rise)
            board.part([(-0.05, foot), (0.05, foot), tip], shaded)
    below = [(-thick, 0), (thick, 0), (0.8 * thick, crown * 1.15), (-0.8 * thick, crown * 1.15)]
    board.part(stem if bare else below, shaded)
    board.paste(board.depth, VEGETATION)


def draw_bush(
    canvas: Canvas, x: float, z: float, size: float, light: Light, rng: np.random.Generator
) -> None:
    """A bush, or with its neighbours a hedge, of about `size` metres."""
    colour, start = leaf_colour(rng) * 0.9, tuple(rng.random(2))
    clumps = rng.random((5, 3))
    board = Billboard.at(canvas, x, z, -size, size, 1.1 * size)
    if board is None:
        return
    for across, up, radius in clumps:
        centre = ((across - 0.5) * 1.1 * size, (0.2 + 0.4 * up) * size)
        outline = centre + _RING * (0.3 + 0.2 * radius) * size
        board.part(np.maximum(outline, (-np.inf, 0.0)), (0, 0, 0))
    _leaves(board, light, colour, start, 40 * size)
    board.paste(board.depth, VEGETATION)


def draw_hedge(
    canvas: Canvas, start: np.ndarray, stop: np.ndarray, tall: float, light: Light, rng: np.random.Generator
) -> None:  # fmt: skip
    """A clipped hedge over the ground line start..stop, each (X, Z)."""
    colour, at = leaf_colour(rng), tuple(rng.random(2))
    line = np.array([stop[0] - start[0], 0.0, stop[1] - start[1]])
    wide = float(np.linalg.norm(line))

    def paint(per_metre: float) -> tuple[np.ndarray, np.ndarray]:
        size = max(round(tall * per_metre), 4), max(round(wide * per_metre), 4)
        noise = textures.crop("leaf", at, (14 * tall, 14 * wide), size)
        texture = textures.tint(colour * light.on(np.array([0, 0.7, -0.7])), noise, 0.4)
        solid = np.ones(size, np.uint8)
        ragged = (0.10 * size[0] * (1 + noise[0].clip(-1, 1))).astype(int)
        solid[np.arange(size[0])[:, None] < ragged[None]] = 0
        return texture, solid

    corner = np.array([start[0], tall, start[1]])
    down = np.array([0.0, -1.0, 0.0])
    canvas.textured_quad(corner, line / wide, down, (wide, tall), paint, VEGETATION)


def draw_pole(
    canvas: Canvas, x: float, z: float, kind: str, side: int, light: Light, rng: np.random.Generator
) -> None:
    """A "lamp", a "post" with one or two signs, a plain "mast" or a "bollard".

    Args:
        side: -1 or 1, the direction along the camera's right in which the street lies.
    """
    tall = {"lamp": 6.5, "post": 2.9, "mast": 5.0, "bollard": 0.95}[kind] * rng.uniform(0.85, 1.2)
    colours = ((120, 122, 124), (64, 68, 70), (40, 62, 48), (150, 146, 138), (88, 66, 52))
    colour = np.array(colours[rng.integers(5)]) * rng.uniform(0.8, 1.25)
    thick = {"lamp": 0.085, "post": 0.045, "mast": 0.10, "bollard": 0.07}[kind] * rng.uniform(
        0.8, 1.3
    )
    arm = rng.uniform(0.8, 2.0) * side
    signs = [_draw_sign_plan(rng) for _ in range(2)]
    second = rng.random() < 0.3
    board = Billboard.at(canvas, x, z, min(-0.6, arm - 0.5), max(0.6, arm + 0.5), tall)
    if board is None:
        return
    # Far poles keep about one pixel: a real lens and sensor would not lose them either.
    half = max(thick, 0.75 * canvas.camera.pixel_unit / board.metre)
    lit = light.on(-canvas.camera.rotation[2])
    shaft = [(-half, 0), (half, 0), (0.8 * half, tall), (-0.8 * half, tall)]
    board.part(shaft, shade(colour, lit))
    board.detail([(-half, 0), (0, 0), (0, tall), (-half, tall)], shade(colour, lit * 0.75))
    if kind == "lamp":
        beam = max(0.04, 0.5 * half)
        board.part(
            [(0, tall - 2 * beam), (arm, tall - beam), (arm, tall), (0, tall)], shade(colour, lit)
        )
        head = [
            (arm - 0.3, tall - 0.16),
            (arm + 0.3, tall - 0.16),
            (arm + 0.25, tall),
            (arm - 0.25, tall),
        ]
        board.part(head, shade(colour, lit * 0.8))
    if kind == "bollard":
        board.detail([(-half, 0.6), (half, 0.6), (half, 0.75), (-half, 0.75)], (220, 216, 210))
    board.paste(board.depth, POLE)
    if kind == "post":
        top = tall
        for plan in signs[: 2 if second else 1]:
            top = _draw_sign(canvas, x, z, top, plan, lit)


def _draw_sign_plan(rng: np.random.Generator) -> tuple[int, float, float]:
    return int(rng.integers(7)), float(rng.uniform(0.65, 1.05)), float(rng.random())


def _polygon(corners: int, rotation: float) -> np.ndarray:
    angle = np.arange(corners) * (2 * np.pi / corners) + rotation
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def _draw_sign(
    canvas: Canvas, x: float, z: float, top: float, plan: tuple[int, float, float], lit: float
) -> float:
    """One sign whose upper edge is at height `top`; returns the height of its lower edge."""
    kind, size, mark = plan
    half = 0.5 * size
    red, white, blue, yellow = (190, 30, 36), (232, 232, 228), (34, 74, 160), (236, 190, 40)
    round_, square = _polygon(14, 0.0), np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    # outline, outer colour, inner colour, inner size
    outline, outer, inner, share = (
        (round_, red, white, 0.72),
        (_polygon(3, np.pi / 2) * 1.15, red, white, 0.6),
        (_polygon(3, -np.pi / 2) * 1.15, red, white, 0.6),
        (round_, blue, blue, 0.9),
        (square * (0.8, 1.0), blue, white, 0.5),
        (_polygon(4, 0.0) * 1.1, white, yellow, 0.75),
        (_polygon(8, np.pi / 8) * 1.05, red, red, 0.9),
    )[kind]
    board = Billboard.at(canvas, x, z - 0.06, -1.2 * half, 1.2 * half, top + 0.2 * half)
    if board is None:
        return top - size
    centre = np.array([0.0, top - half])
    board.part(centre + outline * half, shade(outer, lit))
    board.detail(centre + outline * half * share, shade(inner, lit))
    glyph = (30, 30, 30) if inner in (white, yellow) else white
    bar = square * ((0.1, 0.35) if mark < 0.5 else (0.42, 0.1)) * half
    board.detail(centre + bar, shade(glyph, lit))
    board.paste(board.depth - 0.05, SIGN, canvas.new_instance(SIGN))
    return top - size - 0.06
