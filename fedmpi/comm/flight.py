"""Ranges under way: how many may be, so that neither end waits for the other at every one of them.

With more ranks than cores each such wait costs a turn of the scheduler, which takes longer than the range itself.
"""

from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")
FEWEST = 2


class Flight(Generic[Item]):
    """A queue of ranges that is full when they hold ``budget`` bytes, but never with fewer than two."""

    def __init__(self, budget: int) -> None:
        self._budget, self._held = budget, 0
        self._queue: deque[tuple[int, Item]] = deque()

    def add(self, size: int, item: Item) -> None:
        """Note a range that holds ``size`` bytes. *Not collective.*"""
        self._queue.append((size, item))
        self._held += size

    def pop(self) -> Item:
        """Return and forget the oldest range. *Not collective.*"""
        size, item = self._queue.popleft()
        self._held -= size
        return item

    @property
    def is_full(self) -> bool:
        """Whether the oldest range must be waited for before another starts."""
        return len(self._queue) >= FEWEST and self._held >= self._budget

    @property
    def items(self) -> list[Item]:
        """All ranges under way, the oldest first."""
        return [item for _, item in self._queue]

    def __len__(self) -> int:
        return len(self._queue)


def budget(size: int) -> int:
    """Return how many bytes may be under way for a vector of ``size`` parameters: a quarter of the vector."""
    return size
