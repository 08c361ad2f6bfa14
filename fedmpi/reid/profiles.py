"""The eight embedded clients: how many people and cameras each has, and the style of its world.

Numbers of cameras are those of the eight benchmarks in FedReID (Zhuang et al. 2020); numbers of identities and images
follow their order, compressed to what trains in minutes. Styles are invented, after the look of each benchmark.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedmpi.reid.people import Wardrobe
from fedmpi.reid.scene import Domain


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The size and style of one client, at factor 1.

    Attributes
    ----------
    cameras
        Number of cameras.
    train, test
        Number of identities; test identities are disjoint from the training ones.
    extra
        Identities that are only in the gallery.
    views
        In how many of the cameras an identity is seen, inclusive range.
    shots
        Training images per identity and camera, inclusive range.
    test_shots
        The same in the gallery; a test identity has one image more, the query, in two of its cameras.
    long_names
        Whether files are named as in Market-1501 (``0002_c1s1_000451_00``) or as in the small sets
        (``cam_1_00002_00000``).
    domain
        The style.
    """

    cameras: int
    train: int
    test: int
    extra: int = 0
    views: tuple[int, int] = (2, 2)
    shots: tuple[int, int]
    test_shots: tuple[int, int] = (3, 4)
    long_names: bool = False
    domain: Domain


def _colours(names: str) -> tuple[str, ...]:
    return tuple(names.split())


PROFILES: dict[str, Profile] = {
    "Duke": Profile(  # winter campus, many cameras, coats and bags, pale colours
        cameras=8,
        train=22,
        test=30,
        extra=4,
        views=(3, 5),
        shots=(3, 5),
        test_shots=(2, 3),
        long_names=True,
        domain=Domain(
            Wardrobe(
                upper=_colours("black navy grey wine white blue green beige red teal"),
                lower=_colours("denim black navy khaki grey"),
                summer=0.15,
                coats=0.4,
                bags=0.65,
            ),
            walls=_colours("grey silver beige charcoal"),
            floors=_colours("grey charcoal olive silver"),
            light=0.9,
            contrast=0.9,
            saturation=0.75,
        ),
    ),
    "Market": Profile(  # summer, bright clothes, in front of green
        cameras=6,
        train=22,
        test=30,
        extra=4,
        views=(3, 4),
        shots=(3, 5),
        test_shots=(2, 3),
        long_names=True,
        domain=Domain(
            Wardrobe(
                upper=_colours("white pink sky yellow red black mint green orange purple"),
                lower=_colours("denim black grey white khaki"),
                summer=0.8,
                coats=0.03,
                skirts=0.35,
            ),
            walls=_colours("green silver cream olive"),
            floors=_colours("beige grey khaki"),
            light=1.05,
            contrast=1.1,
        ),
    ),
    "cuhk03-np-detected": Profile(  # indoors, two cameras of very different colour
        cameras=2,
        train=26,
        test=32,
        shots=(4, 6),
        long_names=True,
        domain=Domain(
            Wardrobe(
                upper=_colours("white grey blue red black purple orange pink green yellow"),
                lower=_colours("denim black beige navy"),
                summer=0.6,
                bags=0.75,
            ),
            walls=_colours("cream silver white brown"),
            floors=_colours("silver brown wine"),
            cast=0.05,
            blur=0.5,
            occlusion=0.12,
        ),
    ),
    "prid": Profile(  # grey street in winter, low contrast, many strangers in the gallery
        cameras=2,
        train=16,
        test=26,
        extra=18,
        shots=(5, 7),
        domain=Domain(
            Wardrobe(
                upper=_colours("black brown navy olive cream wine grey red blue white"),
                lower=_colours("denim black grey brown beige"),
                summer=0.05,
                coats=0.5,
                bags=0.5,
            ),
            walls=_colours("silver white charcoal"),
            floors=_colours("silver white grey"),
            saturation=0.7,
            contrast=0.85,
            noise=5.0,
        ),
    ),
    "cuhk01": Profile(  # campus, brick, sharp images
        cameras=2,
        train=22,
        test=28,
        shots=(4, 4),
        domain=Domain(
            Wardrobe(
                upper=_colours("white black sky orange pink green grey lilac red"),
                lower=_colours("denim black white beige"),
                summer=0.7,
                bags=0.7,
            ),
            walls=_colours("brown beige olive"),
            floors=_colours("wine brown beige"),
            light=0.95,
            blur=0.3,
            noise=4.0,
        ),
    ),
    "viper": Profile(  # outdoors, strong sun and shade
        cameras=2,
        train=18,
        test=28,
        shots=(4, 4),
        domain=Domain(
            Wardrobe(
                upper=_colours("white black blue red grey yellow teal pink brown"),
                lower=_colours("denim black khaki beige grey"),
                summer=0.65,
            ),
            walls=_colours("green olive silver sky"),
            floors=_colours("silver beige green"),
            light=1.05,
            light_spread=0.11,
            contrast=1.15,
        ),
    ),
    "3dpes": Profile(  # lawn and paths from far away, blurred
        cameras=2,
        train=12,
        test=26,
        shots=(5, 7),
        domain=Domain(
            Wardrobe(
                upper=_colours("grey blue beige black red olive lilac white orange"),
                lower=_colours("denim navy beige black"),
                summer=0.35,
            ),
            walls=_colours("beige khaki brown"),
            floors=_colours("khaki olive silver"),
            light=0.95,
            blur=0.7,
            contrast=0.9,
            occlusion=0.08,
        ),
    ),
    "ilids": Profile(  # airport hall, dark, luggage, people in the way
        cameras=2,
        train=10,
        test=26,
        shots=(5, 7),
        domain=Domain(
            Wardrobe(
                upper=_colours("black grey brown navy white purple red khaki teal"),
                lower=_colours("black denim charcoal beige"),
                summer=0.15,
                coats=0.35,
                bags=0.8,
            ),
            walls=_colours("sky silver grey teal"),
            floors=_colours("silver sky grey"),
            light=0.85,
            saturation=0.8,
            noise=8.0,
            occlusion=0.2,
        ),
    ),
}
