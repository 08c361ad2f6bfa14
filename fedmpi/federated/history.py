"""What server and client both remember of a client's mask, and the transitions that both make alike.

Since both ends apply the same transitions to the same events, masks travel only as changes, and the recovery of CRR
needs no index at all: the server knows which mask "the last good round" means.
"""

from dataclasses import dataclass, replace

from fedmpi.sparse import Mask


@dataclass(frozen=True)
class MaskHistory:
    """A client's mask, the mask of its last good round, and a counter of changes.

    Attributes
    ----------
    mask
        What the client keeps now.
    good
        What it kept when a received model last passed stage 2 of CRR.
    epoch
        Number of changes so far; a message names it, so that ends that drifted apart notice.
    """

    mask: Mask
    good: Mask
    epoch: int = 0

    @classmethod
    def dense(cls, size: int) -> "MaskHistory":
        """Return the history of a client that has not pruned."""
        full = Mask.full(size)
        return cls(full, full)

    def passed(self) -> "MaskHistory":
        """The received model was good: its mask is the one to return to."""
        return replace(self, good=self.mask)

    def recovered(self) -> "MaskHistory":
        """Return to the mask of the last good round."""
        return replace(self, mask=self.good, epoch=self.epoch + 1)

    def pruned(self, mask: Mask) -> "MaskHistory":
        """Take over the mask of an update; the epoch advances only when it differs."""
        return self if mask == self.mask else replace(self, mask=mask, epoch=self.epoch + 1)

    @property
    def lost(self) -> Mask:
        """The positions that a recovery would give back."""
        return self.good.difference(self.mask)
