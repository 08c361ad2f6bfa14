"""A drawn person: legs, arms and head around the trunk, painted from the farthest part to the nearest."""

from __future__ import annotations

import math
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING

from fedmpi.reid.skeleton import SHOULDER, shade
from fedmpi.reid.trunk import Trunk

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedmpi.reid.skeleton import Fill, Point

UPPER_ARM, FOREARM = 0.165, 0.16
"""Lengths in standard body heights."""


class Figure(Trunk):
    """A person in a pose on a canvas; `paint` draws it."""

    def paint(self) -> None:
        """Draw all parts, the farthest first."""
        parts: list[tuple[float, Callable[[], None]]] = [(0.0, self.torso), (0.001, self._head)]
        for side in (-1, 1):
            parts.append((self.nearness(side * 0.05, 0.0) - 0.1, partial(self._leg, side)))
            parts.append((self.nearness(side * 1.2 * self.width, 0.0), partial(self._arm, side)))
        bag = self.person.bag
        if bag.kind == "backpack":
            parts.append((self.nearness(0.0, -1.3 * self.depth), self.backpack))
        elif bag.kind == "shoulder":
            parts.append((self.nearness(bag.side * 1.4 * self.width, 0.0), self.shoulder_bag))
        for _, part in sorted(parts, key=itemgetter(0)):
            part()

    def _leg(self, side: int) -> None:
        lower, body, pose = self.person.lower, self.person.body, self.pose
        swing = side * pose.stride * 0.42 * math.sin(pose.phase)
        bend = max(0.0, -side * math.cos(pose.phase)) * 0.5 * pose.stride
        light = 0.8 if self.nearness(side * 0.05, 0.0) < -0.02 else 1.0
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
        self.capsule(ankle, toe, (0.024, 0.018), shade(lower.shoes, light))
        self.capsule(knee, ankle, (shin * self.limb * 1.15, shin * self.limb * 0.85), below)
        self.capsule(hip, knee, (0.058 * self.limb, 0.042 * self.limb), skin if "skirt" in lower.garment else cloth)
        if lower.pattern == "side" and not bare:
            self._seam(side, hip, knee, ankle, light)

    def _seam(self, side: int, hip: Point, knee: Point, ankle: Point, light: float) -> None:
        """Draw the line along the outer seam where it can be seen: all but the side turned away."""
        if self.nearness(float(side), 0.0) < -0.35:
            return
        colour, out = shade(self.person.lower.second, light), side * 0.024 * self.limb
        for start, end in ((hip, knee), (knee, ankle)):
            self.capsule((start[0] + out, start[1], start[2]), (end[0] + out, end[1], end[2]), (0.011, 0.011), colour)

    def _arm(self, side: int) -> None:
        upper, body, pose = self.person.upper, self.person.body, self.pose
        swing = -side * pose.stride * 0.5 * math.sin(pose.phase)
        light = 0.82 if self.nearness(float(side), 0.0) < -0.3 else 0.92
        shoulder = (side * 1.0 * self.width, SHOULDER + 0.03, 0.0)
        elbow = (side * 1.2 * self.width, shoulder[1] + UPPER_ARM * math.cos(swing), UPPER_ARM * math.sin(swing))
        lift = swing + 0.25 + 0.2 * pose.stride
        hand = (side * 1.2 * self.width, elbow[1] + FOREARM * math.cos(lift), elbow[2] + FOREARM * math.sin(lift))
        cloth, skin = shade(upper.colour, light), shade(body.skin, light)
        self.capsule(hand, (hand[0], hand[1] + 0.02, hand[2]), (0.02, 0.017), skin)
        self.capsule(elbow, hand, (0.029 * self.limb, 0.022 * self.limb), cloth if upper.sleeves == "long" else skin)
        self.capsule(
            shoulder, elbow, (0.041 * self.limb, 0.033 * self.limb), skin if upper.sleeves == "none" else cloth
        )
        if upper.pattern in ("block", "band") and upper.sleeves == "long":
            self.capsule(
                elbow,
                (hand[0], (elbow[1] + hand[1]) / 2, (elbow[2] + hand[2]) / 2),
                (0.031, 0.028),
                shade(upper.second, light),
            )
        bag = self.person.bag
        if bag.kind == "hand" and bag.side == side:
            self._hand_bag(hand)

    def _hand_bag(self, hand: Point) -> None:
        x, y = self.project(hand)
        wide, colour = 0.07 * (0.35 * abs(self.cos) + abs(self.sin)) * self.size, shade(self.person.bag.colour, 1.0)
        self.draw.rounded_rectangle(
            (x - wide, y + 0.03 * self.size, x + wide, y + 0.17 * self.size), 0.015 * self.size, fill=colour
        )

    def _head(self) -> None:
        body = self.person.body
        x, y = self.project((0.0, 0.07, 0.012))
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

    def _hair_down(self, x: float, y: float, colour: Fill) -> None:
        """Draw long hair from the crown to below the shoulders, behind the face when the person looks at the camera."""
        back = x - 0.3 * self.sin * 0.06 * self.size
        wide, end = (0.058 - 0.012 * abs(self.sin)) * self.size, y + (0.15 if self.cos < 0.3 else 0.1) * self.size
        self.draw.rounded_rectangle(
            (back - wide, y - 0.03 * self.size, back + wide, end), 0.03 * self.size, fill=colour
        )
