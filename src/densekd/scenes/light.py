"""Time of day: how bright each face is, what colour the sky and the haze have."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Light:
    """Light of one scene; colours are RGB 0..255, `to_sun` a unit vector (X, Y up, Z)."""

    ambient: float
    sun: float
    to_sun: np.ndarray
    tint: np.ndarray
    zenith: np.ndarray
    horizon: np.ndarray
    cloud: np.ndarray
    cloud_cover: float
    haze_length: float
    exposure: float

    def on(self, normal: np.ndarray) -> float:
        """Brightness of a face with this unit normal, about 0.4..1.2."""
        return self.ambient + self.sun * max(0.0, float(normal @ self.to_sun))

    def shadow_reach(self, height: float) -> np.ndarray:
        """Where the shadow of a point `height` metres up falls, (2,) ground offset (X, Z)."""
        return -self.to_sun[[0, 2]] * height / max(float(self.to_sun[1]), 0.2)


# kind: probability, ambient, sun, elevation range in degrees, tint, zenith, horizon, cloud colour
_TIMES = (
    (0.36, 0.60, 0.55, (35, 65), (1.0, 1.0, 0.98), (84, 134, 200), (186, 208, 226), (238, 240, 242)),
    (0.30, 0.88, 0.06, (50, 70), (0.97, 1.0, 1.03), (172, 178, 184), (206, 208, 208), (150, 156, 164)),
    (0.20, 0.55, 0.70, (14, 30), (1.12, 0.98, 0.80), (110, 136, 178), (244, 202, 150), (232, 170, 140)),
    (0.14, 0.62, 0.05, (40, 60), (0.86, 0.92, 1.14), (52, 62, 96), (136, 120, 132), (84, 84, 106)),
)  # fmt: skip


def make_light(rng: np.random.Generator) -> Light:
    """Noon, overcast, low sun or dusk, each with its own spread."""
    time = rng.choice(len(_TIMES), p=[row[0] for row in _TIMES])
    _, ambient, sun, elevation, tint, zenith, horizon, cloud = _TIMES[time]
    up = np.deg2rad(rng.uniform(*elevation))
    around = rng.uniform(0.0, 2 * np.pi)
    to_sun = np.array([np.cos(up) * np.sin(around), np.sin(up), np.cos(up) * np.cos(around)])
    jitter = rng.normal(0.0, 9.0, (3, 3))
    return Light(
        ambient=ambient * rng.uniform(0.85, 1.1),
        sun=sun,
        to_sun=to_sun,
        tint=np.array(tint) * rng.normal(1.0, 0.05, 3).clip(0.85, 1.15),
        zenith=np.array(zenith) + jitter[0],
        horizon=np.array(horizon) + jitter[1],
        cloud=np.array(cloud) + jitter[2],
        cloud_cover=rng.uniform(-0.6, 1.3),
        haze_length=float(np.exp(rng.uniform(np.log(45.0), np.log(420.0)))),
        exposure=float(np.clip(rng.normal((1.0, 0.98, 1.0, 0.95)[time], 0.14), 0.65, 1.35)),
    )
