"""The trunk of a drawn person: an elliptical cylinder whose clothes and bags turn with the body.

A place on it is an angle `phi` (0 = chest, pi / 2 = the person's left, pi = back) and a level `down` (0 = shoulder,
1 = hip).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from fedmpi.reid.skeleton import SHOULDER, Skeleton, shade

if TYPE_CHECKING:
    from fedmpi.reid.skeleton import Fill

CHIN = 0.135
TORSO = ((0.0, 0.72), (0.05, 0.98), (0.3, 1.0), (0.62, 0.84), (1.0, 0.9), (1.35, 0.98), (2.4, 1.25))
"""Width of the body (share of the shoulders) by depth below the shoulder (share of the torso)."""


class Trunk(Skeleton):
    """The part of a figure between neck and hip, with skirt, pattern and bags."""

    def surface(self, phi: float, down: float, bulge: float = 1.0) -> tuple[float, float]:
        """Return where (`phi`, `down`) is on the canvas; `bulge` widens the cylinder."""
        factor = bulge * _profile(down)
        x, z = self.width * factor * math.sin(phi), self.depth * factor * math.cos(phi)
        return self.project((x, SHOULDER + down * (self.hip - SHOULDER), z))

    def patch(self, angles: tuple[float, float], rows: tuple[float, float], colour: Fill, bulge: float = 1.0) -> None:
        """Fill the visible part of a patch of the torso's surface; `angles` may be any multiple of the circle."""
        turn = 2 * math.pi * round((self.facing - sum(angles) / 2) / (2 * math.pi))
        low = max(angles[0] + turn, self.facing - math.pi / 2)
        high = min(angles[1] + turn, self.facing + math.pi / 2)
        if low >= high:
            return
        steps = max(1, round((rows[1] - rows[0]) / 0.2))
        downs = [rows[0] + (rows[1] - rows[0]) * i / steps for i in range(steps + 1)]
        left = [self.surface(low, down, bulge) for down in downs]
        right = [self.surface(high, down, bulge) for down in reversed(downs)]
        self.draw.polygon(left + right, fill=colour)

    def wrap(self, rows: tuple[float, float], colour: Fill, bulge: float = 1.0) -> None:
        """Fill a band all around the body."""
        self.patch((self.facing - math.pi / 2, self.facing + math.pi / 2), rows, colour, bulge)

    def torso(self) -> None:
        """Draw skirt, neck, upper garment with its pattern, and the straps of a backpack."""
        upper, lower = self.person.upper, self.person.lower
        if "skirt" in lower.garment:
            self.wrap((0.85, 1.55 if lower.garment == "skirt" else 2.15), shade(lower.colour, 0.95), 1.08)
        neck = (0.0, CHIN - 0.02, 0.0)
        self.capsule(neck, (0.0, SHOULDER + 0.01, 0.0), (0.03, 0.034), shade(self.person.body.skin, 0.9))
        self.wrap((0.0, upper.hem), shade(upper.colour, 1.0), 1.0 if upper.hem < 1.2 else 1.1)
        self._pattern()
        if self.person.bag.kind == "backpack":
            for middle in (-0.75, 0.75):
                self.patch((middle - 0.16, middle + 0.16), (0.0, 0.55), shade(self.person.bag.colour, 0.85), 1.01)
        # the side away from the light
        edge = self.facing + math.pi / 2
        self.patch((edge - 0.35, edge), (0.02, min(upper.hem, 1.0)), shade(upper.colour, 0.78))

    def _pattern(self) -> None:
        """Draw the pattern of the upper garment on its surface, so that it turns with the body."""
        upper = self.person.upper
        end, bulge, second = upper.hem, 1.0 if upper.hem < 1.2 else 1.1, shade(upper.second, 1.0)
        if upper.pattern in ("stripes", "check"):
            step = end / (2 * upper.rows + 1)
            for row in range(upper.rows):
                self.wrap(((2 * row + 1) * step, (2 * row + 2) * step), second, bulge)
        if upper.pattern in ("bars", "check"):
            step = 2 * math.pi / (2 * upper.rows + 2)
            for bar in range(upper.rows + 1):
                self.patch(((2 * bar - 0.5) * step, (2 * bar + 0.5) * step), (0.02, end), second, bulge)
        if upper.pattern == "block":
            self.wrap((0.0, 0.3 + 0.05 * upper.rows), second, bulge)
        if upper.pattern == "band":
            self.wrap((0.12 + 0.08 * upper.rows, 0.3 + 0.08 * upper.rows), second, bulge)
        if upper.pattern == "logo":
            self.patch((-0.85, 0.85), (0.2, 0.38 + 0.04 * upper.rows), second, bulge)
        if upper.pattern == "print":
            self.patch((math.pi - 1.0, math.pi + 1.0), (0.15, 0.4 + 0.06 * upper.rows), second, bulge)
            self.patch((-0.7, -0.2), (0.2, 0.34), second, bulge)
        if upper.pattern == "open":
            self.patch((-0.2 - 0.1 * upper.rows, 0.2 + 0.1 * upper.rows), (0.0, end), second, bulge)

    def backpack(self) -> None:
        """Draw the backpack as a box behind the back, seen whole from behind and in profile from the side."""
        colour, back = self.person.bag.colour, -1.0 * self.depth
        near = self.nearness(0.0, -1.0) > -0.2
        for corners, light in (((0.75, back - 0.085), 1.0), ((0.55, back - 0.092), 1.2)):
            half, far = corners[0] * self.width, corners[1]
            top, bottom = SHOULDER + (0.02 if light == 1.0 else 0.12), SHOULDER + 0.27
            xs = [self.project((x, 0.0, z))[0] for x in (-half, half) for z in (back, far)]
            y0, y1 = self.pose.y + self.size * top, self.pose.y + self.size * bottom
            if light == 1.0 or near:
                self.draw.rounded_rectangle((min(xs), y0, max(xs), y1), 0.03 * self.size, fill=shade(colour, light))

    def shoulder_bag(self) -> None:
        """Draw a bag at the hip and its strap from the other shoulder."""
        bag = self.person.bag
        x = bag.side * 1.25 * self.width
        (cx, cy), half = self.project((x, self.hip + 0.02, 0.0)), 0.075
        wide = half * (0.45 * abs(self.cos) + abs(self.sin)) * self.size
        strap = self.project((-bag.side * 0.35 * self.width, SHOULDER, 0.0))
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


def _profile(down: float) -> float:
    """Return the width factor of the body at depth `down`, linear between the points of `TORSO`."""
    for (d0, w0), (d1, w1) in pairwise(TORSO):
        if down <= d1:
            return w0 + (w1 - w0) * (down - d0) / (d1 - d0)
    return TORSO[-1][1]
