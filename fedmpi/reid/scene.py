"""Where and how a synthetic person is seen: domains, their cameras, and one shot of one camera.

A domain is the world of one client (clothes, places, weather). Each of its cameras has a viewpoint, a background, a
light with a colour cast, a sharpness and a noise of its own; each shot adds what varies between images of one camera.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from fedmpi.reid.figure import Figure
from fedmpi.reid.people import COLOURS
from fedmpi.reid.skeleton import Pose, shade

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmpi.reid.people import Person, Wardrobe

CANVAS = (128, 256)
"""Width and height of the drawing, before it is reduced to the size of the image."""
PANORAMA = (384, 288)
"""Width and height of a camera's background; a shot shows a part of it."""
HAZE = (118, 118, 116)
"""What backgrounds are paled towards, so that clothes stand out from them ..."""
PALENESS = 0.65
"""... and how far, from 0 (as painted) to 1 (nothing left of them)."""
VIEWS = (0.0, math.pi, math.pi / 2, -math.pi / 4, -3 * math.pi / 4, -math.pi / 2, math.pi / 4, 3 * math.pi / 4)
"""Direction of the people in camera 1, 2, ...: front, back, side, and between."""


@dataclass(frozen=True)
class Domain:
    """The style of one client; strengths are those of difficulty 1."""

    wardrobe: Wardrobe
    walls: tuple[str, ...]
    floors: tuple[str, ...]
    light: float = 1.0
    """Mean exposure, 1 = as drawn."""
    light_spread: float = 0.09
    """Standard deviation of the logarithm of the exposure over cameras."""
    cast: float = 0.04
    """Standard deviation of the logarithm of the colour gains over cameras."""
    contrast: float = 1.0
    saturation: float = 0.9
    blur: float = 0.5
    """Mean radius over cameras, in pixels of a 64 pixel high image."""
    noise: float = 6.0
    """Mean standard deviation over cameras, in grey levels."""
    occlusion: float = 0.1
    """Share of shots in which something hides a part of the person."""


@dataclass(frozen=True)
class Camera:
    """One camera of a domain, its nuisances already scaled by the difficulty."""

    domain: Domain
    difficulty: float
    yaw: float
    gains: tuple[float, float, float]
    gamma: float
    blur: float
    noise: float
    slope: tuple[float, float]
    """Fall of the light across and down the image (share at the border)."""
    zoom: float
    panorama: Image.Image


def draw_camera(rng: np.random.Generator, domain: Domain, number: int, difficulty: float) -> Camera:
    """Return camera `number` (from 1) of `domain` with nuisances of strength `difficulty` (0 = none, 1 = default)."""
    exposure = math.log(domain.light) + domain.light_spread * _bounded(rng)
    red, green, blue = (math.exp(difficulty * (exposure + domain.cast * _bounded(rng))) for _ in range(3))
    return Camera(
        domain=domain,
        difficulty=difficulty,
        yaw=min(difficulty, 1.0) * (VIEWS[(number - 1) % len(VIEWS)] + rng.normal(0, 0.2)),
        gains=(red, green, blue),
        gamma=math.exp(difficulty * rng.normal(0, 0.06)),
        blur=difficulty * domain.blur * float(rng.uniform(0.4, 1.6)),
        noise=difficulty * domain.noise * float(rng.uniform(0.4, 1.6)),
        slope=(difficulty * float(rng.uniform(-0.12, 0.12)), difficulty * float(rng.uniform(-0.1, 0.1))),
        zoom=1 + difficulty * float(rng.uniform(-0.06, 0.06)),
        panorama=_draw_panorama(rng, domain),
    )


def _draw_panorama(rng: np.random.Generator, domain: Domain) -> Image.Image:
    """Return a wall and a floor with doors, windows, posts and marks, in the colours of the domain."""
    width, height = PANORAMA
    image = Image.new("RGB", PANORAMA, shade(_any(rng, domain.walls), 0.9))
    draw = ImageDraw.Draw(image)
    horizon = int(rng.uniform(0.45, 0.8) * height)
    for _ in range(int(rng.integers(5, 10))):
        x, y = rng.uniform(-20, width), rng.uniform(-20, 0.7 * horizon)
        wide, high = rng.uniform(12, 70), rng.uniform(30, 200)
        colour = shade(_any(rng, domain.walls), rng.uniform(0.55, 1.2))
        draw.rectangle((x, y, x + wide, min(y + high, horizon)), fill=colour)
    draw.rectangle((0, horizon, width, height), fill=shade(_any(rng, domain.floors), 0.95))
    for _ in range(int(rng.integers(3, 7))):
        x, y, slant = rng.uniform(-40, width), rng.uniform(horizon, height), rng.uniform(-60, 60)
        wide, high = rng.uniform(20, 160), rng.uniform(4, 24)
        colour = shade(_any(rng, domain.floors), rng.uniform(0.7, 1.2))
        draw.polygon([(x, y), (x + wide, y), (x + wide + slant, y + high), (x + slant, y + high)], fill=colour)
    image = Image.blend(image, Image.new("RGB", PANORAMA, HAZE), PALENESS)
    return image.filter(ImageFilter.GaussianBlur(1.5))


def shoot(rng: np.random.Generator, person: Person, camera: Camera, height: int, width: int) -> NDArray[np.uint8]:
    """Return one image of `person` by `camera`, uint8[height, width, 3]; `rng` draws what varies between shots."""
    canvas = _backdrop(rng, camera)
    draw = ImageDraw.Draw(canvas)
    pose = _pose(rng, camera)
    _shadow(draw, pose)
    Figure(draw, person, pose).paint()
    if rng.random() < camera.domain.occlusion * camera.difficulty:
        _occlude(rng, draw, camera)
    image = canvas.resize((width, height), Image.Resampling.BOX)
    radius = camera.blur * float(rng.uniform(0.6, 1.4)) * height / 64
    if radius > 0:
        image = image.filter(ImageFilter.GaussianBlur(radius))
    return _expose(rng, np.asarray(image, dtype=np.float32), camera)


def _backdrop(rng: np.random.Generator, camera: Camera) -> Image.Image:
    x, y = int(rng.integers(PANORAMA[0] - CANVAS[0] + 1)), int(rng.integers(PANORAMA[1] - CANVAS[1] + 1))
    return camera.panorama.crop((x, y, x + CANVAS[0], y + CANVAS[1]))


def _pose(rng: np.random.Generator, camera: Camera) -> Pose:
    strength = camera.difficulty
    turned = math.pi if rng.random() < 0.15 * strength else 0.0
    scale = 0.98 * CANVAS[1] * camera.zoom * math.exp(strength * rng.normal(0, 0.04))
    return Pose(
        yaw=camera.yaw + turned + strength * rng.normal(0, 0.3),
        phase=float(rng.uniform(0, 2 * math.pi)) * min(strength, 1.0),
        stride=float(rng.uniform(0.3, 1.0)),
        x=CANVAS[0] / 2 + strength * rng.normal(0, 6),
        y=CANVAS[1] * 0.025 + strength * rng.normal(0, 7),
        scale=scale,
    )


def _shadow(draw: ImageDraw.ImageDraw, pose: Pose) -> None:
    y, half = pose.y + 0.95 * pose.scale, 0.17 * pose.scale
    draw.ellipse((pose.x - half, y - 5, pose.x + half, y + 6), fill=(52, 52, 54))


def _occlude(rng: np.random.Generator, draw: ImageDraw.ImageDraw, camera: Camera) -> None:
    """Hide a part: a post, a low wall or bin in front of the legs, or someone passing at the border."""
    width, height = CANVAS
    kind, size = int(rng.integers(3)), float(rng.uniform(0.5, 1.0))
    if kind == 0:
        x = rng.uniform(0.15, 0.8) * width
        draw.rectangle((x, 0, x + 0.13 * width * size, height), fill=shade(_any(rng, camera.domain.walls), 0.6))
    elif kind == 1:
        x, y = rng.uniform(-0.3, 0.5) * width, (1 - 0.34 * size) * height
        draw.rectangle(
            (x, y, x + rng.uniform(0.4, 1.0) * width, height), fill=shade(_any(rng, camera.domain.floors), 0.7)
        )
    else:
        edge, wide = (0.0 if rng.random() < 0.5 else float(width)), 0.28 * width * size
        colour = shade(_any(rng, camera.domain.wardrobe.upper), 0.9)
        draw.rounded_rectangle((edge - wide, 0.2 * height, edge + wide, 1.1 * height), 0.8 * wide, fill=colour)
        draw.ellipse((edge - 0.5 * wide, 0.08 * height, edge + 0.5 * wide, 0.22 * height), fill=(70, 52, 42))


def _expose(rng: np.random.Generator, image: NDArray[np.float32], camera: Camera) -> NDArray[np.uint8]:
    """Return the picture that the sensor makes of float32[H, W, 3] in 0..255: light, cast, contrast, noise."""
    strength, domain = camera.difficulty, camera.domain
    height, width, _ = image.shape
    gains = np.asarray(camera.gains) * np.exp(strength * (rng.normal(0, 0.05) + rng.normal(0, 0.02, 3)))
    across = np.linspace(-camera.slope[0], camera.slope[0], width)[None, :, None]
    down = np.linspace(-camera.slope[1], camera.slope[1], height)[:, None, None]
    lit = image / np.float32(255) * gains.astype(np.float32) * (1 + across + down).astype(np.float32)
    grey = lit.mean(axis=2, keepdims=True)
    lit = grey + (lit - grey) * np.float32(1 + strength * (domain.saturation - 1))
    lit = np.maximum(lit, 0)
    lit = (lit / (1 + lit**4) ** np.float32(0.25)) ** np.float32(camera.gamma)
    lit = 0.45 + (lit - 0.45) * np.float32(1 + strength * (domain.contrast - 1))
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(camera.noise)
    picture: NDArray[np.uint8] = np.clip(np.rint(lit * np.float32(255) + noise), 0, 255).astype(np.uint8)
    return picture


def _any(rng: np.random.Generator, names: tuple[str, ...]) -> tuple[float, float, float]:
    return COLOURS[names[int(rng.integers(len(names)))]]


def _bounded(rng: np.random.Generator) -> float:
    """Return a number of mean 0 and standard deviation 1 that never strays far: no camera is blind."""
    return float(rng.uniform(-math.sqrt(3), math.sqrt(3)))
