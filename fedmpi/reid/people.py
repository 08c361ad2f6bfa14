"""Who is drawn: the looks of one synthetic person, sampled from the clothing habits of a client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np

Colour = tuple[float, float, float]
"""Red, green and blue, each 0 to 255, as the object looks in white light."""

Option = TypeVar("Option")

COLOURS: dict[str, Colour] = {
    "black": (28, 28, 32), "charcoal": (62, 64, 70), "grey": (122, 124, 128), "silver": (176, 178, 182),
    "white": (228, 228, 224), "cream": (222, 208, 178), "beige": (190, 164, 124), "brown": (106, 70, 44),
    "red": (178, 38, 40), "wine": (104, 26, 46), "pink": (222, 140, 164), "orange": (218, 112, 36),
    "yellow": (222, 190, 60), "olive": (104, 108, 52), "green": (46, 124, 66), "mint": (140, 196, 166),
    "teal": (30, 112, 120), "sky": (120, 170, 214), "blue": (44, 82, 164), "navy": (30, 40, 82),
    "denim": (70, 94, 134), "purple": (98, 58, 132), "lilac": (170, 146, 200), "khaki": (150, 138, 98),
}  # fmt: skip
SKIN: tuple[Colour, ...] = (
    (238, 200, 172), (222, 176, 142), (196, 146, 108), (156, 106, 74), (112, 74, 52), (78, 52, 40),
)  # fmt: skip
HAIR: tuple[Colour, ...] = (
    (24, 20, 20), (52, 36, 26), (98, 64, 38), (168, 122, 64), (150, 150, 152), (124, 50, 28),
)  # fmt: skip
SHOES = ("black", "black", "brown", "white", "grey", "red", "navy")
PATTERNS = ("stripes", "bars", "block", "band", "logo", "print", "open", "check")


@dataclass(frozen=True)
class Wardrobe:
    """What the people of one client tend to wear: colour names to choose from, and the share of each habit (0 to 1)."""

    upper: tuple[str, ...]
    lower: tuple[str, ...]
    plain: float = 0.3
    summer: float = 0.4
    skirts: float = 0.2
    bags: float = 0.55
    coats: float = 0.2


@dataclass(frozen=True)
class Body:
    """Build and head; lengths are factors of the standard figure (1 = standard)."""

    height: float
    girth: float
    legs: float
    shoulders: float
    skin: Colour
    hair: Colour
    head: str
    """One of short, long, bun, bald, cap, hood."""
    head_colour: Colour
    """Colour of the cap or hood."""


@dataclass(frozen=True)
class Upper:
    """Clothes of the upper body."""

    colour: Colour
    second: Colour
    pattern: str
    """``plain`` or a member of `PATTERNS`."""
    rows: int
    """How many stripes, bars or checks."""
    sleeves: str
    """One of long, short, none."""
    hem: float
    """Where the garment ends: 1 = at the hip, 1.6 = a long coat."""


@dataclass(frozen=True)
class Lower:
    """Clothes of the lower body."""

    colour: Colour
    second: Colour
    pattern: str
    """One of plain, side (a line along the seam), knee (another colour below the knee)."""
    garment: str
    """One of trousers, shorts, skirt, long skirt."""
    shoes: Colour


@dataclass(frozen=True)
class Bag:
    """What the person carries."""

    kind: str
    """One of none, backpack, shoulder, hand."""
    side: int
    """-1 = the person's right, 1 = left."""
    colour: Colour


@dataclass(frozen=True)
class Person:
    """The looks of one identity: all that does not depend on the camera."""

    body: Body
    upper: Upper
    lower: Lower
    bag: Bag


def draw_person(rng: np.random.Generator, wardrobe: Wardrobe) -> Person:
    """Return a person of `wardrobe`; the same generator state gives the same person."""
    return Person(_draw_body(rng), _draw_upper(rng, wardrobe), _draw_lower(rng, wardrobe), _draw_bag(rng, wardrobe))


def _draw_body(rng: np.random.Generator) -> Body:
    return Body(
        height=float(rng.uniform(0.9, 1.0)),
        girth=float(rng.uniform(0.8, 1.35)),
        legs=float(rng.uniform(0.93, 1.07)),
        shoulders=float(rng.uniform(0.9, 1.12)),
        skin=_shade(rng, _pick(rng, SKIN), 6),
        hair=_shade(rng, _pick(rng, HAIR), 8),
        head=_weighted(rng, {"short": 0.38, "long": 0.25, "bun": 0.09, "bald": 0.06, "cap": 0.13, "hood": 0.09}),
        head_colour=_wear(rng, tuple(COLOURS)),
    )


def _draw_upper(rng: np.random.Generator, wardrobe: Wardrobe) -> Upper:
    colour = _wear(rng, wardrobe.upper)
    coat = rng.random() < wardrobe.coats
    summer = 0.0 if coat else wardrobe.summer
    return Upper(
        colour=colour,
        second=_contrasting(rng, colour),
        pattern="plain" if rng.random() < wardrobe.plain else _pick(rng, PATTERNS),
        rows=int(rng.integers(2, 6)),
        sleeves=_weighted(rng, {"short": 0.75 * summer, "none": 0.25 * summer, "long": 1 - summer}),
        hem=float(rng.uniform(1.35, 1.75)) if coat else float(rng.uniform(0.95, 1.15)),
    )


def _draw_lower(rng: np.random.Generator, wardrobe: Wardrobe) -> Lower:
    colour = _wear(rng, wardrobe.lower)
    skirts, shorts = wardrobe.skirts, 0.5 * wardrobe.summer
    return Lower(
        colour=colour,
        second=_contrasting(rng, colour),
        pattern=_weighted(rng, {"plain": 0.7, "side": 0.15, "knee": 0.15}),
        garment=_weighted(
            rng, {"skirt": 0.6 * skirts, "long skirt": 0.4 * skirts, "shorts": shorts, "trousers": 1 - skirts - shorts}
        ),
        shoes=_wear(rng, SHOES),
    )


def _draw_bag(rng: np.random.Generator, wardrobe: Wardrobe) -> Bag:
    share = wardrobe.bags
    return Bag(
        kind=_weighted(
            rng, {"backpack": 0.4 * share, "shoulder": 0.35 * share, "hand": 0.25 * share, "none": 1 - share}
        ),
        side=1 if rng.random() < 0.5 else -1,
        colour=_wear(rng, tuple(COLOURS)),
    )


def _pick(rng: np.random.Generator, options: tuple[Option, ...]) -> Option:
    return options[int(rng.integers(len(options)))]


def _weighted(rng: np.random.Generator, options: dict[str, float]) -> str:
    threshold, total = rng.random() * sum(options.values()), 0.0
    for option, weight in options.items():
        total += weight
        if threshold < total:
            return option
    return next(reversed(options))


def _shade(rng: np.random.Generator, colour: Colour, spread: float) -> Colour:
    common = rng.normal(0, spread)
    red, green, blue = (float(min(max(value + common + rng.normal(0, spread / 2), 4), 250)) for value in colour)
    return red, green, blue


def _wear(rng: np.random.Generator, names: tuple[str, ...]) -> Colour:
    return _shade(rng, COLOURS[_pick(rng, names)], 9)


def _contrasting(rng: np.random.Generator, colour: Colour) -> Colour:
    """Return a colour that differs visibly from `colour`, so that a pattern made of both can be seen."""
    while True:
        other = _wear(rng, tuple(COLOURS))
        if sum(abs(a - b) for a, b in zip(colour, other, strict=True)) > 150:
            return other
