"""The ground plane: road, sidewalks, verges, markings, patches, puddles and cast shadows."""

from dataclasses import dataclass, field

import cv2
import numpy as np

from densekd.scenes import textures
from densekd.scenes.canvas import Canvas
from densekd.scenes.classes import ROAD, SIDEWALK, VEGETATION
from densekd.scenes.light import Light

# The shadow map: a picture of the ground from above, looked up once for each ground pixel.
_MAP_PER_METRE = 6.0
_MAP_HALF_WIDTH = 24.0
_MAP_LENGTH = 80.0


@dataclass(frozen=True)
class Street:
    """Plan of the street; lengths in metres, lateral positions measured from its curved middle."""

    half_width: float
    sidewalk: tuple[float, float]  # widths, left and right
    verge: tuple[float, float]  # planted strip between kerb and sidewalk; 0 where there is none
    bend: float  # the middle lies at X = bend * Z**2 / 2
    end: float  # Z of the backdrop that closes the street
    crossing: tuple[float, float] | None  # Z range of a street that crosses
    zebra: tuple[float, float] | None  # Z range of a pedestrian crossing
    # (z0, z1, X of the front, label) of the open plots on each side: lawns and yards.
    yards: tuple[list[tuple[float, float, int]], list[tuple[float, float, int]]] = field(
        default_factory=lambda: ([], [])
    )

    def middle(self, z: np.ndarray | float) -> np.ndarray | float:
        return 0.5 * self.bend * z * z

    def front(self, side: int) -> float:
        """Distance of the building line from the middle on side 0 (left) or 1 (right)."""
        return self.half_width + self.verge[side] + self.sidewalk[side]


class ShadowMap:
    """Brightness of the ground as seen from above, filled with polygons of (X, Z) positions."""

    def __init__(self) -> None:
        shape = round(_MAP_LENGTH * _MAP_PER_METRE), round(2 * _MAP_HALF_WIDTH * _MAP_PER_METRE)
        self.image = np.full(shape, 255, np.uint8)

    def cast(self, polygon: np.ndarray, brightness: float) -> None:
        pixels = (polygon + np.array([_MAP_HALF_WIDTH, 0.0])) * _MAP_PER_METRE
        cv2.fillPoly(
            self.image, [np.rint(pixels * 4).astype(np.int32)], round(255 * brightness), 8, 2
        )

    def blob(self, centre: np.ndarray, radius: float, brightness: float, rough: np.ndarray) -> None:
        """A rounded shadow with `rough` (n,) relative radii."""
        angle = np.arange(len(rough)) * (2 * np.pi / len(rough))
        outline = np.stack([np.cos(angle), np.sin(angle)], 1) * (radius * rough)[:, None]
        self.cast(centre + outline, brightness)

    def look_up(self, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Brightness 0..1 at ground positions x, z (h, w)."""
        soft = cv2.blur(self.image, (3, 3))
        columns = ((x + _MAP_HALF_WIDTH) * _MAP_PER_METRE).astype(np.float32)
        rows = (z * _MAP_PER_METRE).astype(np.float32)
        found = cv2.remap(
            soft, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=255
        )
        return found.astype(np.float32) * np.float32(1 / 255)


@dataclass(frozen=True)
class Surface:
    """Colours of the ground; drawn before anything is culled, so size never changes a scene."""

    road: np.ndarray
    walk: np.ndarray
    kerb: np.ndarray
    grass: np.ndarray
    mark: np.ndarray
    bike_lane: np.ndarray | None
    paving: float  # side of a paving stone, metres; 0 for an asphalt sidewalk
    parking: float  # width of the marked parking bays at the kerb; 0 where there are none
    lane_dash: tuple[float, float]  # length of a dash and of a period, metres
    offset: tuple[float, float]


def make_surface(rng: np.random.Generator) -> Surface:
    grey = rng.uniform(62, 142)
    road = grey * (1 + rng.normal(0, 0.035, 3))
    # Many sidewalks are of nearly the road's colour: place, not colour, tells them apart.
    if rng.random() < 0.35:
        walk = road * rng.uniform(0.9, 1.18) * (1 + rng.normal(0, 0.02, 3))
    else:
        walk = rng.uniform(95, 190) * np.array(
            [(1, 1, 1), (1.05, 0.97, 0.88), (1.12, 0.92, 0.84), (0.96, 1, 1.02)][rng.integers(4)]
        )
    red = np.array([132, 70, 60]) * rng.uniform(0.8, 1.2)
    has_lane = rng.random() < 0.25
    return Surface(
        road=road,
        walk=walk,
        kerb=rng.uniform(0.8, 1.5) * 0.5 * (road + walk),
        grass=np.array([88, 112, 52]) * (1 + rng.normal(0, 0.14, 3)) * rng.uniform(0.7, 1.2),
        mark=rng.uniform(170, 245)
        * np.array([(1, 1, 1), (1, 0.85, 0.4)][int(rng.random() < 0.15)]),
        bike_lane=red if has_lane else None,
        paving=(0.0, 0.5, 0.8, 1.2)[rng.integers(4)],
        parking=2.1 if rng.random() < 0.4 else 0.0,
        lane_dash=((3.0, 9.0), (1.5, 4.0), (6.0, 12.0), (9.0, 9.0))[rng.integers(4)],
        offset=tuple(rng.uniform(0, 500, 2)),
    )


def _yard_labels(street: Street, side: int) -> np.ndarray:
    """Label of the ground behind the building line for each half metre of Z."""
    table = np.full(int(street.end * 2) + 8, SIDEWALK, np.uint8)
    for z0, z1, label in street.yards[side]:
        table[int(max(z0, 0) * 2) : int(z1 * 2)] = label
    return table


def draw_ground(canvas: Canvas, street: Street, surface: Surface, shadows: ShadowMap, light: Light):
    """Fill every canvas pixel that sees the ground nearer than the street's end."""
    camera = canvas.camera
    height, width = canvas.label.shape
    up = np.array([0.0, 1.0, 0.0])
    depth = camera.plane_depth(up, np.zeros(3), (0, width, 0, height))
    first = int(np.argmax((depth < street.end * 1.5).any(1)))
    depth = depth[first:]
    xs, ys = camera.axes(0, width, first, height)
    to_world = camera.rotation.T.astype(np.float32)
    x = np.float32(camera.position[0]) + depth * (
        to_world[0, 0] * xs[None] + (to_world[0, 1] * ys + to_world[0, 2])[:, None]
    )
    z = depth * (to_world[2, 0] * xs[None] + (to_world[2, 1] * ys + to_world[2, 2])[:, None])
    seen = (z < street.end) & (depth < street.end * 1.5)

    across = x - np.float32(0.5 * street.bend) * z * z
    side = (across > 0).astype(np.uint8)
    reach = np.abs(across)
    label = np.full(depth.shape, SIDEWALK, np.uint8)
    kerb_at = np.float32(street.half_width)
    road = reach < kerb_at
    left_verge, right_verge = (np.float32(width) for width in street.verge)
    verge = np.where(side, right_verge, left_verge)
    verge_zone = ~road & (reach < kerb_at + verge)
    front = np.where(side, np.float32(street.front(1)), np.float32(street.front(0)))
    behind = reach > front
    half_metre = (np.clip(z, 0, street.end) * 2).astype(np.int32)
    left, right = _yard_labels(street, 0), _yard_labels(street, 1)
    label[verge_zone] = VEGETATION
    label = np.where(behind, np.where(side, right[half_metre], left[half_metre]), label)
    label[road] = ROAD
    kerb = np.abs(reach - kerb_at - 0.1) < 0.13
    if street.crossing is not None:
        crosses = (z > street.crossing[0]) & (z < street.crossing[1])
        label[crosses] = ROAD
        kerb &= ~crosses
        road |= crosses
    walk, grass = label == SIDEWALK, label == VEGETATION

    # Grain fades where one texel becomes finer than a canvas pixel, or it would only flicker.
    fade = np.exp(depth * np.float32(-1 / 11))
    grain = textures.look_up("grain", x, z, 24.0, surface.offset)
    stain = textures.look_up("stain", x, z, 5.0, surface.offset)
    tone = 1 + np.float32(0.13) * grain * fade + np.float32(0.10) * stain
    tone += grass * np.float32(0.12) * grain
    if surface.paving:
        size = np.float32(1 / surface.paving)
        joint = (np.mod(x * size, 1) < 0.07) | (np.mod(z * size, 1) < 0.07)
        tone -= (walk & joint) * (np.float32(0.3) * fade)
    plain = road & ~walk & ~grass
    colour = np.where(plain[..., None], np.float32(surface.road), np.float32(surface.walk))
    colour[grass] = surface.grass
    if surface.bike_lane is not None:
        lane = np.abs(reach - (kerb_at - 0.9)) < 0.75
        colour[lane & road] = surface.bike_lane
    _lane_marks(colour, street, surface, across, z, plain)
    colour[kerb & ~grass] = surface.kerb
    label[kerb] = SIDEWALK
    # A puddle is a mirror: sky colour on the road, and still road.
    wet = (stain > 2.05) & (label != VEGETATION)
    colour[wet] = 0.35 * colour[wet] + np.float32(0.6 * light.horizon)
    tone *= shadows.look_up(x, z) * np.float32(light.on(up))
    colour *= tone[..., None]
    pixels = cv2.convertScaleAbs(np.maximum(colour, 0.0, out=colour))
    cv2.copyTo(pixels, seen.view(np.uint8), canvas.colour[first:])
    canvas.label[first:][seen] = label[seen]
    np.copyto(canvas.depth[first:], depth, where=seen)


def _lane_marks(colour, street: Street, surface: Surface, across, z, road) -> None:
    """Middle line, edge lines, parking bays and zebra, in place on `colour` (h, w, 3)."""
    reach = np.abs(across)
    dash, period = surface.lane_dash
    open_road = road
    if street.crossing is not None:
        open_road = road & ((z < street.crossing[0]) | (z > street.crossing[1]))
    marks = (reach < 0.08) & (np.mod(z, np.float32(period)) < dash)
    if surface.parking:
        bay = np.float32(street.half_width - surface.parking)
        marks |= np.abs(reach - bay) < 0.06
        marks |= (reach > bay) & (np.mod(z, np.float32(5.5)) < 0.14)
    elif street.half_width > 4.5:
        marks |= np.abs(reach - np.float32(street.half_width * 0.5)) < 0.07
    marks &= open_road
    if street.zebra is not None:
        band = (z > street.zebra[0]) & (z < street.zebra[1]) & (reach < street.half_width - 0.2)
        marks |= band & open_road & (np.mod(across, np.float32(1.0)) < 0.5)
    colour[marks] = 0.25 * colour[marks] + np.float32(0.75 * surface.mark)


def draw_road_clutter(canvas: Canvas, street: Street, surface: Surface, rng: np.random.Generator):
    """Repairs, cracks, manholes and painted symbols: all of it road, some of it sign-like."""
    for _ in range(rng.integers(4, 12)):
        z = 4.0 + 30.0 * rng.random() ** 1.5
        x = street.middle(z) + rng.uniform(-1, 1) * (street.half_width - 0.6)
        spot = np.array([x, z])
        kind, wide, deep, tone = rng.random(4)
        shape = rng.random((8, 2))
        if kind < 0.35:  # an asphalt repair
            box = np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) + 0.15 * shape[:4]
            patch = spot + (box - 0.5) * (0.6 + 2.2 * wide, 0.8 + 4.0 * deep)
            canvas.ground_mark(patch, surface.road * (0.6 + 0.7 * tone), 0.75, ROAD)
        elif kind < 0.6:  # a crack
            path = np.cumsum((shape - 0.5) * (0.9, 1.4), axis=0) + spot
            outline = np.concatenate([path, path[::-1] + np.array([0.05, 0.03])])
            canvas.ground_mark(outline, surface.road * 0.4, 0.8, ROAD)
        elif kind < 0.78:  # a manhole
            canvas.ground_mark(spot + _circle(12) * 0.36, surface.road * 0.5, 0.85, ROAD)
            canvas.ground_mark(spot + _circle(12) * 0.24, surface.road * 0.8, 0.6, ROAD)
        else:  # a painted arrow or a speed roundel
            mark = surface.mark
            if tone < 0.5:
                arrow = [(-0.12, -1.6), (0.12, -1.6), (0.12, 0.3), (0.45, 0.3), (0, 1.6)]
                arrow += [(-0.45, 0.3), (-0.12, 0.3)]
                canvas.ground_mark(spot + np.array(arrow), mark, 0.8, ROAD)
            else:
                stretch = np.array([0.6, 1.7])
                canvas.ground_mark(spot + _circle(14) * stretch, (190, 50, 45), 0.8, ROAD)
                canvas.ground_mark(spot + _circle(14) * stretch * 0.75, mark, 0.9, ROAD)


def _circle(corners: int) -> np.ndarray:
    angle = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([np.cos(angle), np.sin(angle)], 1)
