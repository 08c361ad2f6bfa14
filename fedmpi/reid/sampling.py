"""Which images form the batches of a local epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


def proxy_batches(
    proxies: NDArray[np.int64], batch_size: int, images_per_proxy: int, generator: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Return the batches of one local epoch: proxies in shuffled order, `images_per_proxy` images of each.

    A proxy is a (camera, cluster) pair. When all proxies are used and batches are still missing, they are shuffled
    again. A proxy with fewer images than asked repeats them as evenly as possible. (FedCAPR's sampler,
    METHOD section 2.)

    Parameters
    ----------
    proxies
        Proxy of each training image, int64[n]; -1 = outlier, never drawn.
    batch_size
        Images per batch; a batch need not end with a whole proxy.
    generator
        All draws come from here, in an order that depends on `proxies` alone.

    Returns
    -------
    list of int64[batch_size]
        Positions in `proxies`; floor(labelled / batch_size) batches. With fewer labelled images than a batch, one batch
        that shows each proxy once (at most `batch_size` images); none when fewer than two images are labelled.
    """
    labelled = int(np.count_nonzero(proxies >= 0))
    if labelled < 2:
        return []
    members = [np.flatnonzero(proxies == proxy) for proxy in np.unique(proxies[proxies >= 0])]
    count = labelled // batch_size
    wanted = count * batch_size if count else min(batch_size, len(members) * images_per_proxy)
    stream: list[int] = []
    visits = _endless(members, generator)
    while len(stream) < wanted:
        stream += _choose(next(visits), images_per_proxy, generator)
    order = np.array(stream[:wanted], dtype=np.int64)
    return np.split(order, max(count, 1))


def _endless(members: list[NDArray[np.int64]], generator: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    while True:
        for position in generator.permutation(len(members)):
            yield members[position]


def _choose(images: NDArray[np.int64], count: int, generator: np.random.Generator) -> list[int]:
    """Return `count` of `images`: without repetition when there are enough, else each as often as any other, +-1."""
    rounds = -(-count // len(images))
    return [int(image) for _ in range(rounds) for image in generator.permutation(images)][:count]
