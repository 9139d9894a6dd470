"""A scene from its number: plan the street, place what stands on it, draw it."""

from dataclasses import dataclass

import numpy as np

from densekd.errors import UserError
from densekd.scenes import buildings, furniture, ground, photo, traffic
from densekd.scenes.camera import SUPERSAMPLE, make_camera
from densekd.scenes.canvas import Canvas, fill
from densekd.scenes.classes import IGNORE
from densekd.scenes.ground import ShadowMap, Street
from densekd.scenes.light import Light, make_light
from densekd.scenes.plan import Plot, Thing, front_line, place_things, plan_street

# Objects that show fewer pixels than this at 128 x 256 get no box; scaled with the image's area.
MIN_VISIBLE_PIXELS = 12
MIN_SIZE = 16


@dataclass(frozen=True)
class Scene:
    """One rendered street with exact annotations.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) uint8, position in CLASSES; 255 on the own bonnet, where one is seen.
        depth: (H, W) float32 metres along the optical axis; 0 (invalid) on sky and own bonnet.
        boxes: (n, 4) float32 XYXY in pixels around the visible part of each car, person and sign.
        box_labels: (n,) int64, position in CLASSES.
        instances: (H, W) int32; 0 for none, i + 1 where box i's object is seen, and -1 where
            an object is seen that is too small to have a box.
        intrinsics: (fx, fy, cx, cy) in pixels; pixel (row i, column j) is seen along
            ((j - cx) / fx, (i - cy) / fy, 1).
        camera_position: (3,) float64, X right, Y up, Z forward, metres; the ground is Y = 0.
        camera_rotation: (3, 3) float64, world to camera (x right, y down, z forward).
    """

    image: np.ndarray
    labels: np.ndarray
    depth: np.ndarray
    boxes: np.ndarray
    box_labels: np.ndarray
    instances: np.ndarray
    intrinsics: tuple[float, float, float, float]
    camera_position: np.ndarray
    camera_rotation: np.ndarray


def render_scene(seed: int, index: int, *, height: int = 128, width: int = 256) -> Scene:
    """Draw scene `index` of the world `seed`: a pure function of its arguments.

    A scene shows the same street at every size of one aspect; only the sensor's noise differs.
    """
    if height < MIN_SIZE or width < MIN_SIZE:
        raise UserError(
            f"A scene of {height} x {width} pixels was asked for; height and width must be at "
            f"least {MIN_SIZE}."
        )
    if seed < 0 or index < 0:
        raise UserError(f"seed and index must not be negative, got {seed} and {index}.")
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))
    light = make_light(rng)
    built_up = rng.random()
    street, plots = plan_street(rng, built_up)
    lane = 0.5 * street.half_width * rng.uniform(0.5, 1.1)
    camera = make_camera(rng, height, width, lane if rng.random() < 0.85 else -lane)
    canvas = Canvas(camera)
    photo.draw_sky(canvas, light, rng)

    surface = ground.make_surface(rng)
    things = place_things(rng, street, plots, built_up)
    shadows = ShadowMap()
    cast_shadows(shadows, light, street, plots, things)
    ground.draw_ground(canvas, street, surface, shadows, light)
    ground.draw_road_clutter(canvas, street, surface, rng)
    # Walls from near to far: what is hidden is not even painted.
    for plot in sorted(plots, key=lambda plot: plot.z0):
        draw_plot(canvas, street, plot, light, rng)
    draw_backdrop(canvas, street, light, rng)
    # Each thing draws from its own stream: what is out of view cannot shift what is in view.
    for thing in sorted(things, key=lambda thing: -thing.z):
        own = np.random.Generator(np.random.PCG64(thing.seed))
        draw_thing(canvas, thing, light, own)
    draw_bonnet(canvas, light, rng)
    image = photo.develop(canvas, light, rng)
    return _finish(canvas, image)


def draw_plot(
    canvas: Canvas, street: Street, plot: Plot, light: Light, rng: np.random.Generator
) -> None:
    """A building with its two visible walls and roof, or the hedge of a yard."""
    facade = buildings.make_facade(rng, light)
    noise_at, roof_tone, shaded = (
        tuple(rng.random(2)),
        rng.uniform(0.7, 1.2),
        rng.uniform(0.1, 0.6, 2),
    )
    own = np.random.Generator(np.random.PCG64(rng.integers(2**62)))
    near, far = front_line(street, plot)
    sign = 1 if plot.side else -1
    outward = np.array([sign, 0.0])
    if not plot.tall:
        if plot.hedge:
            furniture.draw_hedge(canvas, *_left_first(plot, near, far), 0.7 + roof_tone, light, own)
        return
    deep = 9.0
    facing_street = np.array([-sign, 0.0, 0.0])
    facing_us = np.array([0.0, 0.0, -1.0])
    # Only walls that the sun reaches can show the shadow of what stands opposite.
    sunny = light.sun > 0.2 and facing_street @ light.to_sun > 0.05
    gable = (near, near + deep * outward)
    left, right = gable if sign > 0 else gable[::-1]
    buildings.hang_wall(canvas, left, right, plot.tall, facade, light.on(facing_us), peak=plot.roof)
    left, right = _left_first(plot, near, far)
    if plot.roof:
        colour = np.array([(150, 74, 56), (86, 84, 88), (112, 84, 66)][int(3 * noise_at[0])])
        slope = light.on((facing_street + np.array([0.0, 1.0, 0.0])) / np.sqrt(2))
        back = 0.5 * deep * outward
        buildings.draw_roof(
            canvas, left, right, back, plot.tall, plot.roof, colour * roof_tone * slope, noise_at
        )
    shadow = tuple(shaded) if sunny else None
    buildings.hang_wall(canvas, left, right, plot.tall, facade, light.on(facing_street), shadow)


def _left_first(plot: Plot, near: np.ndarray, far: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends of a street front as the camera sees them: left, right."""
    return (far, near) if plot.side else (near, far)


def draw_backdrop(canvas: Canvas, street: Street, light: Light, rng: np.random.Generator) -> None:
    """What closes the street: a low continuous wall or wood, and buildings before it."""
    z = street.end
    normal = np.array([0.0, 0.0, -1.0])
    wide = 3.2 * z
    wood = rng.random() < 0.45
    if wood:
        for step in range(6):
            left = -wide / 2 + step * wide / 6
            ends = np.array([left, z]), np.array([left + wide / 6, z])
            furniture.draw_hedge(canvas, *ends, rng.uniform(3.0, 8.0), light, rng)
    facade = buildings.make_facade(rng, light)
    floor = 1.2 if wood else 3.5
    ends = np.array([-wide / 2, z]), np.array([wide / 2, z])
    buildings.hang_wall(canvas, *ends, floor, facade, light.on(normal))
    left = -0.42 * wide
    while left < 0.42 * wide:
        width, tall, gap = rng.uniform(8, 20), rng.uniform(4.0, 16.0), rng.random()
        facade = buildings.make_facade(rng, light)
        ends = np.array([left, z - 0.5]), np.array([left + width, z - 0.5])
        if gap < (0.35 if wood else 0.75):
            buildings.hang_wall(canvas, *ends, tall, facade, light.on(normal))
        left += width * (1.0 if gap < 0.5 else 1.5)


def cast_shadows(
    shadows: ShadowMap, light: Light, street: Street, plots: list[Plot], things: list[Thing]
) -> None:
    """Darken the ground where buildings and things keep the sun, or at least the sky, away."""
    sunlit = light.sun > 0.2
    level = light.ambient / (light.ambient + light.sun) + 0.06
    for plot in plots:
        if sunlit and plot.tall:
            near, far = front_line(street, plot)
            reach = light.shadow_reach(plot.tall + plot.roof)
            shadows.cast(np.stack([near, far, far + reach, near + reach]), level)
    for thing in things:
        foot = np.array([thing.x, thing.z])
        shape = np.random.Generator(np.random.PCG64(thing.seed)).uniform(0.6, 1.15, 10)
        if thing.kind == "car":
            nose = np.array([np.sin(thing.size), np.cos(thing.size)])
            flank = nose[::-1] * (1, -1)
            box = foot + 2.2 * np.outer((-1, 1, 1, -1), nose) + np.outer((-1, -1, 1, 1), flank)
            if sunlit:
                shadows.cast(box + light.shadow_reach(1.1), level)
            shadows.cast(box, 0.45)
        elif sunlit:
            tall = {"person": 1.7, "lamp": 6.5, "post": 2.5, "mast": 5.0}.get(
                thing.kind, thing.size
            )
            tip = light.shadow_reach(tall)
            if thing.kind in ("tree", "bush"):
                shadows.blob(foot + 0.65 * tip, 0.34 * tall, level, shape)
            across = 0.17 * np.array([tip[1], -tip[0]]) / max(np.hypot(*tip), 1e-6)
            shadows.cast(foot + np.stack([across, -across, tip - across, tip + across]), level)


def draw_thing(canvas: Canvas, thing: Thing, light: Light, rng: np.random.Generator) -> None:
    if thing.kind == "car":
        traffic.draw_car(canvas, thing.x, thing.z, thing.size, light, rng)
    elif thing.kind == "person":
        traffic.draw_person(canvas, thing.x, thing.z, light, rng)
    elif thing.kind == "tree":
        furniture.draw_tree(canvas, thing.x, thing.z, thing.size, light, rng)
    elif thing.kind == "bush":
        furniture.draw_bush(canvas, thing.x, thing.z, thing.size, light, rng)
    else:
        furniture.draw_pole(canvas, thing.x, thing.z, thing.kind, int(thing.size), light, rng)


def draw_bonnet(canvas: Canvas, light: Light, rng: np.random.Generator) -> None:
    """The bonnet of the own car in some scenes: unlabelled, of no depth, hiding what is behind."""
    seen, rise, tone, shift = rng.random(4)
    if seen > 0.18:
        return
    height, width = canvas.label.shape
    across = np.linspace(0, 1, 24)
    top = 1 - (0.03 + 0.06 * rise) * np.sin(np.pi * across.clip(0.02, 0.98)) ** 0.4
    outline = np.stack([(across - 0.05 + 0.1 * shift) * width, top * height], 1)
    outline = np.concatenate([outline, [(width, height + 2), (0, height + 2)]])
    mask = np.zeros((height, width), np.uint8)
    fill(mask, outline, 1)
    hidden = mask.view(bool)
    sheen = np.linspace(1.2, 0.5, height)[:, None, None] * light.ambient
    paint = (30 + 150 * tone) * np.ones(3) * sheen + 0.15 * light.horizon
    canvas.colour[:] = np.where(hidden[..., None], paint.clip(0, 255), canvas.colour)
    canvas.label[hidden] = IGNORE
    canvas.depth[hidden] = 0.0
    canvas.instance[hidden] = 0


def _finish(canvas: Canvas, image: np.ndarray) -> Scene:
    """Take the samples that are pixel centres and measure the boxes on them."""
    camera = canvas.camera
    labels = np.ascontiguousarray(canvas.label[::SUPERSAMPLE, ::SUPERSAMPLE])
    depth = np.ascontiguousarray(canvas.depth[::SUPERSAMPLE, ::SUPERSAMPLE])
    depth[np.isinf(depth)] = 0.0
    drawn = canvas.instance[::SUPERSAMPLE, ::SUPERSAMPLE]
    smallest = max(MIN_VISIBLE_PIXELS * labels.size / (128 * 256), 4.0)
    count = len(canvas.instance_label)
    area = np.bincount(drawn.ravel(), minlength=count)
    kept = np.flatnonzero((area >= smallest) & (np.arange(count) > 0))
    renumber = np.full(count, -1, np.int32)
    renumber[0] = 0
    renumber[kept] = np.arange(1, len(kept) + 1)
    rows, columns = np.nonzero(drawn)
    owner = drawn[rows, columns]
    low = np.full((count, 2), np.iinfo(np.int64).max)
    high = np.full((count, 2), -1)
    spots = np.stack([columns, rows], 1)
    np.minimum.at(low, owner, spots)
    np.maximum.at(high, owner, spots)
    boxes = np.concatenate([low[kept], high[kept] + 1], axis=1).astype(np.float32)
    return Scene(
        image=image,
        labels=labels,
        depth=depth,
        boxes=boxes,
        box_labels=np.array(canvas.instance_label, np.int64)[kept],
        instances=renumber[drawn],
        intrinsics=(camera.focal, camera.focal, camera.cx, camera.cy),
        camera_position=camera.position,
        camera_rotation=camera.rotation,
    )
