import numpy as np
import pytest

from fedmpi.errors import SchemaError
from fedmpi.record import MESSAGE_DTYPE, round_traffic, traffic
from fedmpi.record.messages import check_messages
from tests.record import sample


@pytest.mark.parametrize("round", [0, 1, 2, 3])
def test_traffic_is_the_sum_over_rows_by_direction_and_section(round):
    table = sample.messages(round)
    sums = traffic(table, 3)
    for client in range(3):
        for side, ways in {"up": {b"up", b"request"}, "down": {b"down", b"recover"}}.items():
            rows = [row for row in table.tolist() if row[1] == client and row[2] in ways]
            for section in sample.SECTIONS:
                column = MESSAGE_DTYPE.names.index(section)
                assert sums[f"bytes_{side}_{section}"][client] == sum(row[column] for row in rows)
            dense = [row[MESSAGE_DTYPE.names.index("dense_bytes")] for row in rows if row[2] == side.encode()]
            assert sums[f"bytes_dense_{side}"][client] == sum(dense)
    every_byte = round_traffic(sums)
    assert every_byte["bytes_up"] + every_byte["bytes_down"] + every_byte["bytes_evaluation"] == table["bytes"].sum()
    assert (every_byte["bytes_evaluation"] > 0) == (round == 2)


def test_sums_are_exact_beyond_what_a_float_holds():
    table = sample.messages(0)
    table["values"] = 2**53 + 1
    assert traffic(table, 3)["bytes_up_values"].tolist() == [2**53 + 1] * 3


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("round", 7, "not of round 0"),
        ("client", 3, "no client in 0..2"),
        ("client", -1, "no client in 0..2"),
        ("direction", b"sideways", "direction other than up, down"),
        ("mask_mode", b"magic", "mask mode other than none"),
        ("header", -1, "negative section"),
        ("bytes", 1, "not the sum of its sections"),
    ],
)
def test_a_message_that_contradicts_is_refused_by_row(column, value, words):
    table = sample.messages(0)
    check_messages(table, 0, 3)
    table[column][4] = value
    with pytest.raises(SchemaError, match=f"message 4 of round 0.*{words}"):
        check_messages(table, 0, 3)


def test_another_dtype_is_refused():
    with pytest.raises(SchemaError, match="MESSAGE_DTYPE"):
        check_messages(np.zeros(3), 0, 3)
