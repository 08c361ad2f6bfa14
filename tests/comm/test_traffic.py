import numpy as np
import pytest

from fedmpi.comm import Direction, Meter, Traffic
from fedmpi.sparse import Head, Kind, Layout, Mask, encode_head
from fedmpi.sparse.header import Header

LAYOUT = Layout(names=("w", "b"), shapes=((30, 33), (10,)), buffer_names=("mean",), buffer_shapes=((20,),))
MASK = Mask.from_bool(np.random.default_rng(0).random(1000) < 0.6)


def message(kind: Kind) -> tuple[Traffic, int, int]:
    """Return the record of a message with 20 buffers and 3 scalars, and the bytes of its head and of its mask."""
    head = Head(
        kind=kind,
        round=7,
        client=2,
        base_epoch=0,
        epoch=0 if kind is Kind.REQUEST else 1,
        mask=None if kind is Kind.REQUEST else MASK,
        buffers=np.zeros(20, np.float32),
        scalars=np.zeros(3),
    )
    data, sections = encode_head(head, LAYOUT, Mask.full(1000))
    return Traffic.of(Header.unpack(data.data, LAYOUT, 3), start=1.5, seconds=0.25), data.size, sections.mask


def test_every_section_counts():
    m, head_bytes, mask_bytes = message(Kind.UPDATE)
    assert (m.round, m.client, m.direction) == (7, 2, Direction.UP)
    assert 0 < mask_bytes <= 125
    assert (m.header, m.mask, m.values, m.buffers, m.scalars) == (128, mask_bytes, 4 * MASK.count(), 80, 24)
    assert m.total == head_bytes + 4 * MASK.count()
    assert m.dense == 128 + 4 * 1000 + 80 + 24  # all values, no mask
    assert (m.start, m.seconds) == (1.5, 0.25)


@pytest.mark.parametrize(
    ("kind", "direction", "dense"),
    [
        (Kind.MODEL, Direction.DOWN, 128 + 4000 + 80 + 24),
        (Kind.EVALUATION, Direction.EVALUATE, 128 + 4000 + 80 + 24),
        (Kind.REQUEST, Direction.REQUEST, 0),
        (Kind.RECOVERED, Direction.RECOVER, 0),
    ],
)
def test_what_only_pruning_needs_has_no_dense_equivalent(kind, direction, dense):
    m, _, _ = message(kind)
    assert (m.direction, m.dense) == (direction, dense)


def test_the_meter_forgets_what_was_taken():
    meter = Meter()
    m, _, _ = message(Kind.UPDATE)
    meter.add([m, m])
    meter.control += 16
    assert meter.take() == ([m, m], 16)
    assert meter.take() == ([], 0)


def test_stages_add_up_and_are_forgotten_when_taken(monkeypatch):
    clock = iter([0.0, 1.0, 10.0, 14.0, 20.0, 21.5, 30.0, 30.25])
    monkeypatch.setattr("fedmpi.comm.traffic.time.perf_counter", lambda: next(clock))
    meter = Meter()
    for _ in range(2):
        with meter.time("wait"):
            pass
    with meter.time("merge"):
        pass
    with pytest.raises(ZeroDivisionError), meter.time_encoding(3):
        raise ZeroDivisionError
    assert meter.take_seconds() == ({"wait": 5.0, "merge": 1.5}, {3: 0.25})
    assert meter.take_seconds() == ({}, {})
