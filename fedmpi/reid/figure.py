"""How a person is drawn: a posed skeleton of cylinders and capsules, seen from an angle, with Pillow polygons.

Body coordinates are x (the person's left), y (down from the crown) and z (forward) in units of a standard body height.
A viewpoint of `yaw` radians turns them to the picture: 0 shows the front, pi / 2 the side (walking to the right), pi
the back. Parts are painted from the farthest to the nearest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import ImageDraw

    from fedmpi.reid.people import Colour, Person

Point = tuple[float, float, float]

SHOULDER, HIP, CHIN = 0.165, 0.5, 0.135
UPPER_ARM, FOREARM = 0.165, 0.16
TORSO = ((0.0, 0.72), (0.05, 0.98), (0.3, 1.0), (0.62, 0.84), (1.0, 0.9), (1.35, 0.98), (2.4, 1.25))
"""Width of the body (share of the shoulders) by depth below the shoulder (share of the torso)."""


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


def shade(colour: Colour, factor: float) -> tuple[int, int, int]:
    """Return `colour` times `factor` as Pillow takes it, clipped to 0..255."""
    red, green, blue = (int(min(max(value * factor, 0.0), 255.0)) for value in colour)
    return red, green, blue


class Figure:
    """A person in a pose on a canvas; `paint` draws it."""

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

    def paint(self) -> None:
        """Draw all parts, far ones first."""
        parts: list[tuple[float, Callable[[], None]]] = [(0.0, self._torso), (0.001, self._head)]
        for side in (-1, 1):
            parts.append((self._depth(side * 0.05, 0.0) - 0.1, lambda side=side: self._leg(side)))  # type: ignore[misc]
            parts.append((self._depth(side * 1.2 * self.width, 0.0), lambda side=side: self._arm(side)))  # type: ignore[misc]
        bag = self.person.bag
        if bag.kind == "backpack":
            parts.append((self._depth(0.0, -1.3 * self.depth), self._backpack))
        elif bag.kind == "shoulder":
            parts.append((self._depth(bag.side * 1.4 * self.width, 0.0), self._shoulder_bag))
        for _, part in sorted(parts, key=lambda item: item[0]):
            part()

    def _depth(self, x: float, z: float) -> float:
        """Return how near to the camera a point is (0 = the body's axis)."""
        return z * self.cos - x * self.sin

    def _project(self, point: Point) -> tuple[float, float]:
        x, y, z = point
        return self.pose.x + self.size * (x * self.cos + z * self.sin), self.pose.y + self.size * y

    def _capsule(self, start: Point, end: Point, radii: tuple[float, float], colour: tuple[int, int, int]) -> None:
        (x0, y0), (x1, y1) = self._project(start), self._project(end)
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

    def _surface(self, phi: float, down: float, bulge: float = 1.0) -> tuple[float, float]:
        """Return the place of angle `phi` (0 = chest) and level `down` (0 = shoulder, 1 = hip) on the canvas."""
        factor = bulge * _profile(down)
        x, z = self.width * factor * math.sin(phi), self.depth * factor * math.cos(phi)
        return self._project((x, SHOULDER + down * (self.hip - SHOULDER), z))

    def _patch(
        self, angles: tuple[float, float], rows: tuple[float, float], colour: tuple[int, int, int], bulge: float = 1.0
    ) -> None:
        """Fill the visible part of a patch of the torso's surface; `angles` may be any multiple of the circle."""
        turn = 2 * math.pi * round((self.facing - sum(angles) / 2) / (2 * math.pi))
        low = max(angles[0] + turn, self.facing - math.pi / 2)
        high = min(angles[1] + turn, self.facing + math.pi / 2)
        if low >= high:
            return
        steps = max(1, round((rows[1] - rows[0]) / 0.2))
        downs = [rows[0] + (rows[1] - rows[0]) * i / steps for i in range(steps + 1)]
        left = [self._surface(low, down, bulge) for down in downs]
        right = [self._surface(high, down, bulge) for down in reversed(downs)]
        self.draw.polygon(left + right, fill=colour)

    def _wrap(self, rows: tuple[float, float], colour: tuple[int, int, int], bulge: float = 1.0) -> None:
        self._patch((self.facing - math.pi / 2, self.facing + math.pi / 2), rows, colour, bulge)

    # ---------------------------------------------------------------- legs

    def _leg(self, side: int) -> None:
        lower, body, pose = self.person.lower, self.person.body, self.pose
        swing = side * pose.stride * 0.42 * math.sin(pose.phase)
        bend = max(0.0, -side * math.cos(pose.phase)) * 0.5 * pose.stride
        light = 0.8 if self._depth(side * 0.05, 0.0) < -0.02 else 1.0
        ground = 0.955
        thigh = (ground - self.hip) * 0.48
        hip = (side * 0.5 * self.width, self.hip - 0.01, 0.0)
        knee = (side * 0.46 * self.width, hip[1] + thigh * math.cos(swing), thigh * math.sin(swing))
        ankle_angle = swing - bend
        ankle = (
            side * 0.44 * self.width,
            knee[1] + thigh * math.cos(ankle_angle),
            knee[2] + thigh * math.sin(ankle_angle),
        )
        toe = (ankle[0] * 1.25, ankle[1] + 0.025, ankle[2] + 0.055)
        cloth, skin = shade(lower.colour, light), shade(body.skin, light)
        bare = lower.garment != "trousers"
        below = skin if bare else shade(lower.second, light) if lower.pattern == "knee" else cloth
        shin = 0.027 if bare else 0.036
        self._capsule(ankle, toe, (0.024, 0.018), shade(lower.shoes, light))
        self._capsule(knee, ankle, (shin * self.limb * 1.15, shin * self.limb * 0.85), below)
        self._capsule(hip, knee, (0.058 * self.limb, 0.042 * self.limb), skin if "skirt" in lower.garment else cloth)
        if lower.pattern == "side" and not bare:
            self._seam(side, hip, knee, ankle, light)

    def _seam(self, side: int, hip: Point, knee: Point, ankle: Point, light: float) -> None:
        """Draw the line along the outer seam where it can be seen: all but the side turned away."""
        if self._depth(float(side), 0.0) < -0.35:
            return
        colour, out = shade(self.person.lower.second, light), side * 0.024 * self.limb
        for start, end in ((hip, knee), (knee, ankle)):
            self._capsule((start[0] + out, start[1], start[2]), (end[0] + out, end[1], end[2]), (0.011, 0.011), colour)

    # ---------------------------------------------------------------- torso

    def _torso(self) -> None:
        upper, lower = self.person.upper, self.person.lower
        if "skirt" in lower.garment:
            self._wrap((0.85, 1.55 if lower.garment == "skirt" else 2.15), shade(lower.colour, 0.95), 1.08)
        neck = (0.0, CHIN - 0.02, 0.0)
        self._capsule(neck, (0.0, SHOULDER + 0.01, 0.0), (0.03, 0.034), shade(self.person.body.skin, 0.9))
        self._wrap((0.0, upper.hem), shade(upper.colour, 1.0), 1.0 if upper.hem < 1.2 else 1.1)
        self._pattern()
        if self.person.bag.kind == "backpack":
            for middle in (-0.75, 0.75):
                self._patch((middle - 0.16, middle + 0.16), (0.0, 0.55), shade(self.person.bag.colour, 0.85), 1.01)
        # the side away from the light
        edge = self.facing + math.pi / 2
        self._patch((edge - 0.35, edge), (0.02, min(upper.hem, 1.0)), shade(upper.colour, 0.78))

    def _pattern(self) -> None:
        """Draw the pattern of the upper garment on its surface, so that it turns with the body."""
        upper = self.person.upper
        end, bulge, second = upper.hem, 1.0 if upper.hem < 1.2 else 1.1, shade(upper.second, 1.0)
        if upper.pattern in ("stripes", "check"):
            step = end / (2 * upper.rows + 1)
            for row in range(upper.rows):
                self._wrap(((2 * row + 1) * step, (2 * row + 2) * step), second, bulge)
        if upper.pattern in ("bars", "check"):
            step = 2 * math.pi / (2 * upper.rows + 2)
            for bar in range(upper.rows + 1):
                self._patch(((2 * bar - 0.5) * step, (2 * bar + 0.5) * step), (0.02, end), second, bulge)
        if upper.pattern == "block":
            self._wrap((0.0, 0.3 + 0.05 * upper.rows), second, bulge)
        if upper.pattern == "band":
            self._wrap((0.12 + 0.08 * upper.rows, 0.3 + 0.08 * upper.rows), second, bulge)
        if upper.pattern == "logo":
            self._patch((-0.85, 0.85), (0.2, 0.38 + 0.04 * upper.rows), second, bulge)
        if upper.pattern == "print":
            self._patch((math.pi - 1.0, math.pi + 1.0), (0.15, 0.4 + 0.06 * upper.rows), second, bulge)
            self._patch((-0.7, -0.2), (0.2, 0.34), second, bulge)
        if upper.pattern == "open":
            self._patch((-0.2 - 0.1 * upper.rows, 0.2 + 0.1 * upper.rows), (0.0, end), second, bulge)

    def _backpack(self) -> None:
        """Draw the backpack as a box behind the back, seen whole from behind and in profile from the side."""
        colour, back = self.person.bag.colour, -1.0 * self.depth
        near = self._depth(0.0, -1.0) > -0.2
        for corners, light in (((0.75, back - 0.085), 1.0), ((0.55, back - 0.092), 1.2)):
            half, far = corners[0] * self.width, corners[1]
            top, bottom = SHOULDER + (0.02 if light == 1.0 else 0.12), SHOULDER + 0.27
            xs = [self._project((x, 0.0, z))[0] for x in (-half, half) for z in (back, far)]
            y0, y1 = self.pose.y + self.size * top, self.pose.y + self.size * bottom
            if light == 1.0 or near:
                self.draw.rounded_rectangle((min(xs), y0, max(xs), y1), 0.03 * self.size, fill=shade(colour, light))

    def _shoulder_bag(self) -> None:
        bag = self.person.bag
        x = bag.side * 1.25 * self.width
        (cx, cy), half = self._project((x, self.hip + 0.02, 0.0)), 0.075
        wide = half * (0.45 * abs(self.cos) + abs(self.sin)) * self.size
        strap = self._project((-bag.side * 0.35 * self.width, SHOULDER, 0.0))
        self.draw.line(
            (strap[0], strap[1], cx, cy - 0.06 * self.size),
            fill=shade(bag.colour, 0.8),
            width=max(1, int(0.022 * self.size)),
        )
        self.draw.rounded_rectangle(
            (cx - wide, cy - 0.06 * self.size, cx + wide, cy + 0.07 * self.size),
            0.02 * self.size,
            fill=shade(bag.colour, 1.0),
        )

    # ---------------------------------------------------------------- arms

    def _arm(self, side: int) -> None:
        upper, body, pose = self.person.upper, self.person.body, self.pose
        swing = -side * pose.stride * 0.5 * math.sin(pose.phase)
        light = 0.82 if self._depth(float(side), 0.0) < -0.3 else 0.92
        shoulder = (side * 1.0 * self.width, SHOULDER + 0.03, 0.0)
        elbow = (side * 1.2 * self.width, shoulder[1] + UPPER_ARM * math.cos(swing), UPPER_ARM * math.sin(swing))
        lift = swing + 0.25 + 0.2 * pose.stride
        hand = (side * 1.2 * self.width, elbow[1] + FOREARM * math.cos(lift), elbow[2] + FOREARM * math.sin(lift))
        cloth, skin = shade(upper.colour, light), shade(body.skin, light)
        self._capsule(hand, (hand[0], hand[1] + 0.02, hand[2]), (0.02, 0.017), skin)
        self._capsule(elbow, hand, (0.029 * self.limb, 0.022 * self.limb), cloth if upper.sleeves == "long" else skin)
        self._capsule(
            shoulder, elbow, (0.041 * self.limb, 0.033 * self.limb), skin if upper.sleeves == "none" else cloth
        )
        if upper.pattern in ("block", "band") and upper.sleeves == "long":
            self._capsule(
                elbow,
                (hand[0], (elbow[1] + hand[1]) / 2, (elbow[2] + hand[2]) / 2),
                (0.031, 0.028),
                shade(upper.second, light),
            )
        bag = self.person.bag
        if bag.kind == "hand" and bag.side == side:
            self._hand_bag(hand)

    def _hand_bag(self, hand: Point) -> None:
        x, y = self._project(hand)
        wide, colour = 0.07 * (0.35 * abs(self.cos) + abs(self.sin)) * self.size, shade(self.person.bag.colour, 1.0)
        self.draw.rounded_rectangle(
            (x - wide, y + 0.03 * self.size, x + wide, y + 0.17 * self.size), 0.015 * self.size, fill=colour
        )

    # ---------------------------------------------------------------- head

    def _head(self) -> None:
        body = self.person.body
        x, y = self._project((0.0, 0.07, 0.012))
        wide, high = 0.05 * self.size, 0.068 * self.size
        hair = shade(body.head_colour if body.head == "hood" else body.hair, 1.0)
        if body.head == "long":
            self._hair_down(x, y, hair)
        if body.head == "bun":
            bx = x - 0.05 * self.sin * self.size
            self.draw.ellipse((bx - wide / 2, y - 1.3 * high, bx + wide / 2, y - 0.6 * high), fill=hair)
        crown = shade(body.skin, 0.95) if body.head == "bald" else hair
        grow = 1.22 if body.head == "hood" else 1.08
        self.draw.ellipse((x - grow * wide, y - grow * high, x + grow * wide, y + high), fill=crown)
        if self.cos > -0.35:
            self._face(x, y, wide, high)
        if body.head == "cap":
            self._cap(x, y, wide, high)

    def _face(self, x: float, y: float, wide: float, high: float) -> None:
        """Draw the face, moved to the side the person looks to."""
        body = self.person.body
        fx, half = x + 0.42 * self.sin * wide, wide * (0.86 - 0.28 * abs(self.sin))
        top = y - (0.9 if body.head == "bald" else 0.42) * high
        self.draw.ellipse((fx - half, top, fx + half, y + 0.98 * high), fill=shade(body.skin, 1.0))
        for eye in (-0.4, 0.4):
            ex, ey, size = fx + (eye + 0.5 * self.sin) * half, y + 0.05 * high, 0.09 * wide
            self.draw.ellipse((ex - size, ey - size, ex + size, ey + size), fill=(30, 26, 26))

    def _cap(self, x: float, y: float, wide: float, high: float) -> None:
        colour = shade(self.person.body.head_colour, 1.0)
        self.draw.pieslice((x - 1.12 * wide, y - 1.15 * high, x + 1.12 * wide, y + 0.75 * high), 180, 360, fill=colour)
        if self.cos > -0.35:
            peak = x + 0.8 * self.sin * wide
            self.draw.rectangle(
                (peak - 0.95 * wide, y - 0.3 * high, peak + 0.95 * wide, y - 0.14 * high),
                fill=shade(self.person.body.head_colour, 0.7),
            )

    def _hair_down(self, x: float, y: float, colour: tuple[int, int, int]) -> None:
        """Draw long hair from the crown to below the shoulders, behind the face when the person looks at the camera."""
        back = x - 0.3 * self.sin * 0.06 * self.size
        wide, end = (0.058 - 0.012 * abs(self.sin)) * self.size, y + (0.15 if self.cos < 0.3 else 0.1) * self.size
        self.draw.rounded_rectangle(
            (back - wide, y - 0.03 * self.size, back + wide, end), 0.03 * self.size, fill=colour
        )


def _profile(down: float) -> float:
    """Return the width factor of the body at depth `down`, linear between the points of `TORSO`."""
    for (d0, w0), (d1, w1) in pairwise(TORSO):
        if down <= d1:
            return w0 + (w1 - w0) * (down - d0) / (d1 - d0)
    return TORSO[-1][1]
