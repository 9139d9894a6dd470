"""From clean geometry to a photograph: sky, haze, glare, lens and sensor."""

import cv2
import numpy as np

from densekd.scenes import textures
from densekd.scenes.camera import SUPERSAMPLE
from densekd.scenes.canvas import Canvas
from densekd.scenes.light import Light


def draw_sky(canvas: Canvas, light: Light, rng: np.random.Generator) -> None:
    """Fill the canvas with a gradient and clouds; everything else is drawn over it."""
    start, stretch = tuple(rng.random(2)), rng.uniform(40, 110)
    height, width = canvas.label.shape
    rows = int(0.75 * height)
    noise = textures.crop("cloud", start, (stretch, stretch * 1.1), (rows, width))
    slope = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None] ** 0.8
    sky = np.float32(light.zenith) * (1 - slope) + np.float32(light.horizon) * slope
    cover = np.clip((noise + np.float32(light.cloud_cover - 0.4)) * 0.6, 0, 0.9)[..., None]
    sky = sky + cover * (np.float32(light.cloud) - sky)
    canvas.colour[:rows] = sky.clip(0, 255).astype(np.uint8)
    canvas.colour[rows:] = light.horizon.clip(0, 255).astype(np.uint8)


def develop(canvas: Canvas, light: Light, rng: np.random.Generator) -> np.ndarray:
    """The finished picture (H, W, 3) uint8 of a drawn canvas.

    Everything drawn per pixel comes last, so the content of a scene is the same at every size.
    """
    camera = canvas.camera
    blur, speed, noise, gamma = rng.uniform(0, 1, 4)
    glare = rng.random(4)
    vignette = rng.uniform(0.0, 0.3)
    contrast = rng.uniform(0.72, 1.1)
    # Smoothing centred on the samples that labels and depth take: edges stay where they are.
    kernel = np.array([0.25, 0.5, 0.25], np.float32)
    smooth = cv2.sepFilter2D(canvas.colour, -1, kernel, kernel)
    image = smooth[::SUPERSAMPLE, ::SUPERSAMPLE].astype(np.float32)
    depth = canvas.depth[::SUPERSAMPLE, ::SUPERSAMPLE]
    height, width = depth.shape
    unit = camera.pixel_unit / SUPERSAMPLE

    clear = np.exp(depth * np.float32(-1 / light.haze_length))
    clear[np.isinf(depth)] = 0.75
    haze = np.float32(light.horizon)
    image = haze + clear[..., None] * (image - haze)

    if glare[0] < 0.2:
        xs = np.linspace(0, 1, width, dtype=np.float32) - glare[1]
        ys = (np.linspace(0, 1, height, dtype=np.float32) - 0.5 * glare[2]) * (height / width)
        distance = xs[None] ** 2 + ys[:, None] ** 2
        bloom = (50 + 90 * glare[3]) * np.exp(distance * np.float32(-14))
        image += bloom[..., None] * np.float32(light.tint)

    xs = np.linspace(-1, 1, width, dtype=np.float32)
    ys = np.linspace(-1, 1, height, dtype=np.float32)
    falloff = 1 - np.float32(vignette) * 0.5 * (xs[None] ** 2 + ys[:, None] ** 2)
    image *= falloff[..., None] * np.float32(light.tint * light.exposure)
    image = (image - 110) * np.float32(contrast) + np.float32(110)
    if blur > 0.6:
        image = cv2.GaussianBlur(image, (0, 0), (0.35 + 1.0 * (blur - 0.6)) * unit)
    if speed > 0.9:  # shaken sideways
        image = cv2.blur(image, (max(round(3 * unit), 1), 1))
    curve = (np.linspace(0, 1, 256) ** (0.8 + 0.45 * gamma) * 255).astype(np.uint8)
    image = cv2.LUT(image.clip(0, 255).astype(np.uint8), curve)
    strength = 1.5 + 8.0 * noise**2
    grains = rng.standard_normal((height, width, 3), dtype=np.float32)
    return (image + np.float32(strength) * grains).clip(0, 255).astype(np.uint8)
