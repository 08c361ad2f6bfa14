"""TensorBoard event files, written without TensorBoard: scalars, the same bytes for the same numbers.

An event file is a sequence of records, each framed as length, checksum of the length, data, checksum of the data; the
data are messages of tensorflow's ``event.proto``, of which four fields are needed (docs of TFRecord; event.proto,
summary.proto)::

    Event    1 double wall_time   2 int64 step   3 string file_version   5 Summary summary
    Summary  1 repeated Value     Value  1 string tag   2 float simple_value
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_POLYNOMIAL: Final = 0x82F63B78  # Castagnoli's, bits reversed
_MASK_DELTA: Final = 0xA282EAD8


def _table() -> tuple[int, ...]:
    entries = []
    for byte in range(256):
        remainder = byte
        for _ in range(8):
            remainder = (remainder >> 1) ^ (_POLYNOMIAL if remainder & 1 else 0)
        entries.append(remainder)
    return tuple(entries)


_TABLE: Final = _table()


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of ``data``."""
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder = _TABLE[(remainder ^ byte) & 0xFF] ^ (remainder >> 8)
    return remainder ^ 0xFFFFFFFF


def masked_crc(data: bytes) -> int:
    """Return the checksum as records carry it: rotated and shifted, so that records can hold records."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def record(data: bytes) -> bytes:
    """Return ``data`` framed as one record."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data))


def version_event(wall_time: float) -> bytes:
    """Return the event that every file begins with."""
    return b"\x09" + struct.pack("<d", wall_time) + _sized(0x1A, b"brain.Event:2")


def scalars_event(wall_time: float, step: int, values: Mapping[str, float]) -> bytes:
    """Return one event with a scalar per tag; ``wall_time`` in seconds since 1970, ``step`` not negative."""
    entries = [_sized(0x0A, tag.encode()) + b"\x15" + struct.pack("<f", value) for tag, value in values.items()]
    summary = b"".join(_sized(0x0A, entry) for entry in entries)
    return b"\x09" + struct.pack("<d", wall_time) + b"\x10" + _varint(step) + _sized(0x2A, summary)


def _sized(tag: int, data: bytes) -> bytes:
    """Return a field of bytes."""
    return bytes([tag]) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    """Return a whole number, seven bits a byte, the lowest first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


class EventWriter:
    """Writes one event file; as a context manager it closes it.

    Parameters
    ----------
    folder
        What TensorBoard shows as one run; made if need be.
    wall_time
        Begin of the run, seconds since 1970; part of the name, as TensorBoard expects it.
    """

    def __init__(self, folder: Path, wall_time: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"events.out.tfevents.{int(wall_time):010d}.fedmpi"
        self._file = self.path.open("wb")
        self._file.write(record(version_event(wall_time)))

    def add(self, wall_time: float, step: int, values: Mapping[str, float]) -> None:
        """Write the scalars of one step; nothing when there are none."""
        if values:
            self._file.write(record(scalars_event(wall_time, step, values)))

    def __enter__(self) -> Self:
        """Return the writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._file.close()
