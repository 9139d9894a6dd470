"""Cars and people."""

import cv2
import numpy as np

from densekd.scenes.canvas import Billboard, Canvas, Sprite, fill, shade
from densekd.scenes.classes import CAR, PERSON
from densekd.scenes.light import Light

# length, width, body top, roof height; share of the length where the cabin starts and ends below
# and above, from the rear bumper
_CAR_SHAPES = (
    (4.3, 1.78, 0.92, 1.46, 0.10, 0.72, 0.24, 0.55),  # saloon
    (3.8, 1.70, 0.95, 1.52, 0.01, 0.76, 0.08, 0.56),  # hatchback
    (4.6, 1.90, 1.08, 1.74, 0.01, 0.74, 0.07, 0.60),  # off-roader
    (5.0, 1.98, 1.15, 2.25, 0.00, 0.86, 0.01, 0.74),  # van
)
_CAR_COLOURS = (
    (28, 29, 32), (70, 72, 76), (112, 114, 118), (160, 162, 165), (222, 222, 220),
    (140, 30, 32), (34, 58, 110), (60, 92, 74), (190, 150, 60), (92, 74, 60),
)  # fmt: skip
_ROOM = np.array([34, 38, 44])


def draw_car(
    canvas: Canvas, x: float, z: float, heading: float, light: Light, rng: np.random.Generator
) -> None:
    """A car on the ground at (x, z), nose towards `heading` (radians from +Z to +X)."""
    shape = _CAR_SHAPES[rng.choice(4, p=(0.35, 0.33, 0.2, 0.12))]
    paint = np.array(_CAR_COLOURS[rng.integers(len(_CAR_COLOURS))]) * rng.uniform(0.8, 1.2)
    lamps_on, glass, plate = rng.random(3)
    length, width, body, roof, rear0, nose0, rear1, nose1 = shape
    nose = np.array([np.sin(heading), 0.0, np.cos(heading)])
    flank = np.array([np.cos(heading), 0.0, -np.sin(heading)])
    middle = np.array([x, 0.0, z])
    ahead, aside, above = length * nose, 0.5 * width * flank, np.array([0.0, 1.0, 0.0])

    def at(along, across, up) -> np.ndarray:
        """World points of car coordinates: along 0..1 from the rear, across -1..1, up in metres."""
        along, across, up = (np.reshape(part, (-1, 1)) for part in (along, across, up))
        return middle + (along - 0.5) * ahead + across * aside + up * above

    ends, sides = np.array([0, 0, 1, 1]), np.array([-1, 1, 1, -1])
    sprite = Sprite.around(canvas, np.concatenate([at(ends, sides, 0), at(ends, sides, roof)]), 1.2)
    if sprite is None:
        return
    eye = canvas.camera.position
    depth = np.full(sprite.mask.shape, np.inf, np.float32)
    pane = _ROOM + glass * 0.35 * light.horizon

    def face(points: np.ndarray, colour: np.ndarray, normal: np.ndarray) -> bool:
        """Draw a side of the car with its own depth; False if it looks away from the camera."""
        if float((eye - points[0]) @ normal) <= 0:
            return False
        pixels, corners = canvas.camera.project(points)
        pixels -= sprite.origin
        inside = np.zeros_like(sprite.mask)
        fill(sprite.colour, pixels, shade(colour, light.on(normal)))
        fill(inside, pixels, 1)
        cv2.bitwise_or(sprite.mask, inside, sprite.mask)
        if sprite.coarse:
            depth[inside.view(bool)] = corners.mean()
            return True
        plane = canvas.camera.plane_depth(normal, points[0], sprite.window)
        # A face seen edge-on has no sound depth on its rim: keep it within its corners.
        np.clip(plane, corners.min(), corners.max(), out=plane)
        np.copyto(depth, plane, where=inside.view(bool))
        return True

    up = np.array([0.0, 1.0, 0.0])
    low = 0.24
    for end, sign in ((0, -1), (1, 1)):
        quad = at(end, np.array([-1, 1, 1, -1]), np.array([low, low, body, body]))
        if face(quad, paint * 0.92, sign * nose) and not sprite.coarse:
            _draw_end(sprite, at, end, body, lamps_on, plate)
    for sign in (-1, 1):
        quad = at(np.array([0, 1, 1, 0]), sign, np.array([low, low, body, body]))
        if not face(quad, paint, sign * flank) or sprite.coarse:
            continue
        for wheel in (0.19, 0.81):
            angle = np.arange(10) * (2 * np.pi / 10)
            for radius, tone in ((0.33, 26), (0.19, 120)):
                rim = at(
                    wheel + radius / length * np.cos(angle), sign, 0.33 + radius * np.sin(angle)
                )
                if radius > 0.3:
                    face(rim, np.full(3, tone), sign * flank)
                else:
                    sprite.detail(rim, (tone, tone, tone))
        seam = at(
            np.array([0.05, 0.95, 0.95, 0.05]), sign, body * np.array([0.72, 0.72, 0.76, 0.76])
        )
        sprite.detail(seam, shade(paint, 0.6))
    face(at(ends, sides, body), paint * 1.08, up)

    # The cabin: a frustum whose sides are glass between pillars.
    inset = 0.82
    lean_back = at(
        np.array([rear0, rear0, rear1, rear1]),
        np.array([-1, 1, inset, -inset]) * 0.92,
        np.array([body, body, roof, roof]),
    )
    lean_front = at(
        np.array([nose0, nose0, nose1, nose1]),
        np.array([-1, 1, inset, -inset]) * 0.92,
        np.array([body, body, roof, roof]),
    )
    for quad, sign in ((lean_back, -1), (lean_front, 1)):
        slope = (rear1 - rear0 if sign < 0 else nose0 - nose1) * length
        normal = sign * nose * (roof - body) + up * slope
        if face(quad, paint, normal / np.linalg.norm(normal)):
            sprite.detail(_shrink(quad, 0.84), shade(pane, light.on(sign * nose) * 1.1))
    for sign in (-1, 1):
        along = np.array([rear0, nose0, nose1, rear1])
        across = sign * 0.92 * np.array([1, 1, inset, inset])
        quad = at(along, across, np.array([body, body, roof, roof]))
        if face(quad, paint, sign * flank):
            sprite.detail(_shrink(quad, 0.8), shade(pane, light.on(sign * flank)))
            post = 0.5 * (rear0 + nose0)
            pillar = at(
                np.array([post, post + 0.02, post + 0.02, post]), across, [body, body, roof, roof]
            )
            sprite.detail(pillar, shade(paint, 0.7))
    top = at(np.array([rear1, nose1, nose1, rear1]), 0.92 * inset * np.array([-1, -1, 1, 1]), roof)
    face(top, paint * 1.1, up)
    sprite.paste(depth, CAR, canvas.new_instance(CAR))


def _draw_end(sprite: Sprite, at, end: int, body: float, lamps_on: float, plate: float) -> None:
    """Lamps, plate and bumper on the rear (`end` 0) or the front (1)."""
    bright = lamps_on < 0.35
    red = (255, 60, 40) if bright else (150, 24, 26)
    white = (255, 250, 225) if bright else (196, 200, 204)
    lamp = white if end else red

    def box(left: float, right: float, low: float, high: float, colour) -> None:
        heights = np.array([low, low, high, high])
        sprite.detail(at(end, np.array([left, right, right, left]), heights), colour)

    box(-0.94, 0.94, 0.24, 0.42, (38, 39, 41))
    box(-0.92, -0.6, 0.62 * body, 0.86 * body, lamp)
    box(0.6, 0.92, 0.62 * body, 0.86 * body, lamp)
    if end == 1:
        box(-0.5, 0.5, 0.5 * body, 0.7 * body, (30, 31, 33))
    box(-0.28, 0.28, 0.44, 0.56, (232, 230, 214) if plate < 0.7 else (236, 206, 80))


def _shrink(polygon: np.ndarray, amount: float) -> np.ndarray:
    centre = polygon.mean(0)
    return centre + amount * (polygon - centre)


_SKIN = ((232, 190, 164), (206, 152, 118), (150, 102, 74), (96, 64, 48))


def draw_person(canvas: Canvas, x: float, z: float, light: Light, rng: np.random.Generator) -> None:
    """A person standing or walking at ground (x, z): limbs, clothes, hair, perhaps a bag."""
    tall = rng.uniform(1.55, 1.92) if rng.random() < 0.85 else rng.uniform(1.0, 1.4)
    stride, swing, facing = rng.uniform(-1, 1, 3)
    skin = np.array(_SKIN[rng.integers(4)])
    # Clothes are mostly dull, as walls and roads are; few people stand out by colour.
    vivid = rng.random() < 0.5
    shirt = (
        rng.uniform(20, 240, 3)
        if vivid
        else np.full(3, rng.uniform(28, 190)) + rng.normal(0, 10, 3)
    )
    legs = np.full(3, rng.uniform(22, 120)) + rng.normal(0, 12, 3)
    hair = np.array([(30, 24, 20), (84, 58, 38), (150, 120, 76), (150, 150, 150)][rng.integers(4)])
    side_on, coat, bag, hat = rng.random(4)
    board = Billboard.at(canvas, x, z, -0.5 * tall, 0.5 * tall, tall)
    if board is None:
        return
    wide = tall * (0.085 if side_on < 0.5 else 0.125)
    step = tall * 0.13 * stride * (1.0 if side_on < 0.5 else 0.35)
    lit = light.on(-canvas.camera.rotation[2])

    def limb(x0: float, y0: float, x1: float, y1: float, thick: float, colour) -> None:
        outline = [
            (x0 - thick, y0),
            (x0 + thick, y0),
            (x1 + thick * 0.8, y1),
            (x1 - thick * 0.8, y1),
        ]
        board.part(outline, shade(colour, lit))

    hip, neck = 0.50 * tall, 0.82 * tall
    for sign in (-1, 1):
        foot = sign * (step + 0.35 * wide)
        knee = 0.6 * foot + 0.03 * tall * facing
        tone = legs * (0.85 if sign < 0 else 1.0)
        if board.coarse:
            limb(sign * 0.4 * wide, hip, foot, 0.0, 0.4 * wide, tone)
            continue
        limb(sign * 0.4 * wide, hip, knee, 0.26 * tall, 0.42 * wide, tone)
        limb(knee, 0.28 * tall, foot, 0.03 * tall, 0.34 * wide, tone)
        limb(foot, 0.04 * tall, foot + 0.03 * tall * facing, 0.0, 0.4 * wide, np.full(3, 34))
    for sign in (-1, 1):
        if board.coarse:
            break
        hand = sign * (0.95 * wide + 0.4 * abs(step)) * (1 if side_on >= 0.5 else swing)
        limb(sign * 0.85 * wide, 0.80 * tall, hand * 1.15, 0.62 * tall, 0.28 * wide, shirt * 0.88)
        limb(
            hand * 1.15,
            0.63 * tall,
            hand * 1.2,
            0.47 * tall,
            0.22 * wide,
            skin if coat < 0.3 else shirt,
        )
    hem = hip - (0.16 * tall if coat > 0.7 else 0.02 * tall)
    torso = [(-0.85 * wide, hem), (0.85 * wide, hem), (wide, 0.78 * tall), (0.6 * wide, neck)]
    torso += [(-0.6 * wide, neck), (-wide, 0.78 * tall)]
    board.part(torso, shade(shirt, lit))
    lower = [
        (-0.8 * wide, hem),
        (0.1 * wide, hem),
        (0.0, neck - 0.02 * tall),
        (-0.9 * wide, 0.77 * tall),
    ]
    if not board.coarse:
        board.detail(lower, shade(shirt, lit * 0.84))
    if bag < 0.35:
        at = wide * (1.0 if facing > 0 else -1.0)
        limb(at, 0.74 * tall, at * 1.1, 0.52 * tall, 0.5 * wide, np.array([60, 40, 36]) + 120 * bag)
    angle = np.arange(10) * (2 * np.pi / 10)
    ring = np.stack([np.cos(angle), np.sin(angle)], 1)
    limb(0.0, neck - 0.01 * tall, 0.0, 0.87 * tall, 0.3 * wide, skin)
    head = np.array([0.0, 0.92 * tall])
    board.part(head + ring * (0.05 * tall, 0.075 * tall), shade(skin, lit))
    back = ring[ring[:, 1] > -0.2] if hat > 0.3 else ring
    cap = shirt if hat < 0.1 else hair
    board.part(
        head + (0.008 * tall * facing, 0.016 * tall) + back * (0.054 * tall, 0.066 * tall),
        shade(cap, lit),
    )
    board.paste(board.depth, PERSON, canvas.new_instance(PERSON))
