"""``fedmpi bench``: what the wire format, the kernels and the exchange cost on this machine.

Ratios inside one run are what counts: variants are interleaved, so that a machine that others use as well slows all of
them alike. docs/performance.md holds dated results.
"""

from fedmpi.bench.command import bench

__all__ = ["bench"]
