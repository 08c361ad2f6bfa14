"""A posed body and the picture plane: projection of body coordinates, and the capsules that limbs are made of.

Body coordinates are x (the person's left), y (down from the crown) and z (forward) in units of a standard body height.
A viewpoint of `yaw` radians turns them to the picture: 0 shows the front, pi / 2 the side (walking to the right), pi
the back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import ImageDraw

    from fedmpi.reid.people import Colour, Person

Point = tuple[float, float, float]
Fill = tuple[int, int, int]

SHOULDER, HIP = 0.165, 0.5
"""Levels below the crown of a standard body."""


@dataclass(frozen=True)
class Pose:
    """One moment of walking, seen from somewhere.

    `yaw` and `phase` in radians; `stride` scales the swing of legs and arms (1 = brisk); `x`, `y` place the crown on
    the canvas and `scale` is the standard body height there, in canvas pixels.
    """

    yaw: float
    phase: float
    stride: float
    x: float
    y: float
    scale: float


def shade(colour: Colour, factor: float) -> Fill:
    """Return `colour` times `factor` as Pillow takes it, clipped to 0..255."""
    red, green, blue = (int(min(max(value * factor, 0.0), 255.0)) for value in colour)
    return red, green, blue


class Skeleton:
    """A person in a pose on a canvas: proportions, projection, and one shape."""

    def __init__(self, draw: ImageDraw.ImageDraw, person: Person, pose: Pose) -> None:
        self.draw, self.person, self.pose = draw, person, pose
        self.cos, self.sin = math.cos(pose.yaw), math.sin(pose.yaw)
        self.size = pose.scale * person.body.height
        girth = person.body.girth
        self.width = 0.134 * person.body.shoulders * (0.6 + 0.4 * girth)
        self.depth = 0.088 * girth
        self.hip = SHOULDER + (HIP - SHOULDER) * (2 - person.body.legs)
        self.limb = 1.2 * (0.6 + 0.4 * girth)
        # phi of the surface point that looks at the camera, on the elliptical cylinder (width sin phi, depth cos phi)
        self.facing = -math.atan2(self.width * self.sin, self.depth * self.cos)

    def nearness(self, x: float, z: float) -> float:
        """Return how near to the camera a point is (0 = the body's axis)."""
        return z * self.cos - x * self.sin

    def project(self, point: Point) -> tuple[float, float]:
        """Return where a point of the body is on the canvas, in pixels."""
        x, y, z = point
        return self.pose.x + self.size * (x * self.cos + z * self.sin), self.pose.y + self.size * y

    def capsule(self, start: Point, end: Point, radii: tuple[float, float], colour: Fill) -> None:
        """Fill the outline of two balls and the cone between them; `radii` in body heights."""
        (x0, y0), (x1, y1) = self.project(start), self.project(end)
        r0, r1 = radii[0] * self.size, radii[1] * self.size
        length = math.hypot(x1 - x0, y1 - y0) or 1.0
        nx, ny = (y1 - y0) / length, (x0 - x1) / length
        self.draw.polygon(
            [
                (x0 + nx * r0, y0 + ny * r0),
                (x1 + nx * r1, y1 + ny * r1),
                (x1 - nx * r1, y1 - ny * r1),
                (x0 - nx * r0, y0 - ny * r0),
            ],
            fill=colour,
        )
        self.draw.ellipse((x0 - r0, y0 - r0, x0 + r0, y0 + r0), fill=colour)
        self.draw.ellipse((x1 - r1, y1 - r1, x1 + r1, y1 + r1), fill=colour)
