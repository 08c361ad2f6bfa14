"""Between a rank and its GPU: only the values that a mask keeps cross the bus, through one pinned buffer.

Who sends packs and who receives expands, in both directions. Transfers run on a stream of their own:
the device waits for a value where it first uses it, the host in `finish` and before it writes to the buffer again.
The vector that crossed last stays on the device, and does not cross again.
"""

from contextlib import AbstractContextManager, nullcontext
from weakref import ref

import numpy as np
import torch
from numpy.typing import NDArray

from fedmpi.sparse import Mask
from fedmpi.sparse.kernels import expand, pack


class Staging:
    """Moves flat vectors of ``size`` entries to and from ``device``, one at a time. *No method is collective.*

    Vectors that it was given or has returned must not be changed: they are known again by identity.

    Where the device is the CPU everything works the same, without streams: so it is tested without a GPU.
    """

    def __init__(self, device: torch.device, size: int) -> None:
        self._device, self._size = device, size
        self._is_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._is_gpu else None  # type: ignore[no-untyped-call]
        self._moved = torch.cuda.Event() if self._is_gpu else None  # type: ignore[no-untyped-call]
        self._buffer: torch.Tensor | None = None
        self._places: tuple[Mask, torch.Tensor] | None = None
        self._arriving: tuple[Mask, torch.Tensor] | None = None
        self._last: tuple[ref[NDArray[np.float32]], torch.Tensor] | None = None

    def up(self, theta: NDArray[np.float32], mask: Mask) -> torch.Tensor:
        """Return ``theta`` (``float32[N]``, zero where the mask keeps nothing) on the device."""
        if self._last is not None and self._last[0]() is theta:
            return self._last[1]
        host = self._room(mask.count())
        pack(theta, mask, out=host.numpy())
        with self._aside():
            values = host.to(self._device, non_blocking=True, copy=True)
            if self._moved is not None:
                self._moved.record()
        if self._stream is not None:
            here = torch.cuda.current_stream(self._device)
            here.wait_stream(self._stream)
            values.record_stream(here)
        whole = self.expanded(values, mask)
        self._last = ref(theta), whole
        return whole

    def arrived(self, values: torch.Tensor, mask: Mask) -> NDArray[np.float32]:
        """Return on the host, ``float32[N]``, a vector whose kept ``values`` MPI has brought to the device."""
        self._fetch(values, mask, self.expanded(values, mask))
        return self.finish()

    def start(self, theta: torch.Tensor, mask: Mask) -> None:
        """Begin to fetch ``theta`` (``float32[N]`` on the device, zero where the mask keeps nothing)."""
        self._fetch(self.packed(theta, mask), mask, theta)

    def _fetch(self, values: torch.Tensor, mask: Mask, whole: torch.Tensor) -> None:
        host = self._room(values.numel())
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            values.record_stream(self._stream)
        with self._aside():
            host.copy_(values, non_blocking=True)
            if self._moved is not None:
                self._moved.record()
        self._arriving = mask, whole

    def finish(self) -> NDArray[np.float32]:
        """Wait for what `start` fetches and return it on the host, ``float32[N]``.

        Raises
        ------
        RuntimeError
            Nothing is on its way.
        """
        arriving, self._arriving = self._arriving, None
        if arriving is None:
            raise RuntimeError("nothing is on its way from the device")
        mask, whole = arriving
        theta = expand(self._room(mask.count()).numpy(), mask)
        self._last = ref(theta), whole
        return theta

    def packed(self, theta: torch.Tensor, mask: Mask) -> torch.Tensor:
        """Return the kept entries of ``float32[N]``, both on the device; itself if they are all."""
        return theta if mask.is_full else theta.index_select(0, self._positions(mask))

    def expanded(self, values: torch.Tensor, mask: Mask) -> torch.Tensor:
        """Return ``values`` in their places, ``float32[N]``, both on the device; themselves if they are all."""
        if mask.is_full:
            return values
        whole = torch.zeros(mask.size, dtype=torch.float32, device=self._device)
        return whole.index_copy_(0, self._positions(mask).long(), values)

    def free(self) -> None:
        """Give the memory back, when no transfer needs it any more."""
        self._wait()
        self._buffer = self._places = self._arriving = self._last = None

    def _room(self, count: int) -> torch.Tensor:
        """Return the beginning of the pinned buffer, when the last transfer has left it."""
        if self._arriving is not None:
            raise RuntimeError("a model is on its way from the device: finish that first")
        self._wait()
        if self._buffer is None:
            self._buffer = torch.empty(self._size, dtype=torch.float32, pin_memory=self._is_gpu)
        return self._buffer[:count]

    def _wait(self) -> None:
        if self._moved is not None:
            self._moved.synchronize()

    def _aside(self) -> AbstractContextManager[object]:
        """Return the context of the stream for transfers."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _positions(self, mask: Mask) -> torch.Tensor:
        """Return the kept entries' places on the device, ``int32[count]``: found there, once for each mask.

        The bits cross the bus, an eighth of a byte an entry; finding positions waits for the device once.
        """
        if self._places is None or self._places[0] != mask:
            bits = torch.from_numpy(mask.bitmap.copy()).to(self._device)
            shifts = torch.arange(8, dtype=torch.uint8, device=self._device)
            kept = bits.unsqueeze(1).bitwise_right_shift(shifts).bitwise_and_(1).view(-1)[: mask.size]
            self._places = mask, kept.nonzero().view(-1).to(torch.int32 if mask.size < 1 << 31 else torch.int64)
        return self._places[1]
