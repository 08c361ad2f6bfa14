"""docs/wire-format.md: its example is what the code makes and what the reference decoder reads."""

import runpy
from pathlib import Path

import numpy as np

from fedmpi.sparse import Flag, Kind, MaskMode, ValueCoding, bitcode, decode_head
from fedmpi.sparse.values_portable import Record
from tests.sparse.support import reference_header, reference_mask, reference_values

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "wire-format.md").read_text(encoding="utf-8")
EXAMPLE = runpy.run_path(str(DOCS / "wire_example.py"))


def block():
    return TEXT.split("```text\n")[1].split("```")[0]


def test_the_text_shows_what_the_script_prints():
    assert block() == EXAMPLE["listing"](EXAMPLE["example"]()[0])


def test_the_listing_is_the_message():
    hexadecimal = "".join(line[6:38].strip() for line in block().splitlines())
    assert bytes.fromhex(hexadecimal) == EXAMPLE["example"]()[0]


def test_the_reference_decoder_reads_it():
    data, before, after = EXAMPLE["example"]()
    fields = reference_header(data)
    section = data[-fields["mask_bytes"] :]
    kept = reference_mask(fields["mask_mode"], section, before.to_bool().tolist(), [1024, 32])
    assert np.flatnonzero(~np.array(kept)).tolist() == [3, 40, 41, 200, 517, 900]
    assert np.flatnonzero(~after.to_bool()).tolist() == [3, 40, 41, 200, 517, 900]


def test_the_package_reads_the_bytes_of_the_text():
    data = bytes.fromhex("".join(line[6:38].strip() for line in block().splitlines()))
    _, before, after = EXAMPLE["example"]()
    head = decode_head(data, EXAMPLE["LAYOUT"], kind=Kind.UPDATE, round=5, client=2, epoch=3, previous=before)
    assert head.mask == after
    assert head.scalars.tolist() == [0.25]
    assert head.buffers.tolist() == [1.5, -2]


def test_every_name_and_number_is_in_the_text():
    for enum in (Kind, ValueCoding, MaskMode, Flag, bitcode.Coder):
        for member in enum:
            assert f"{member.value} {member.name}" in TEXT, member


def test_the_record_of_the_text_is_what_the_code_writes_and_the_reference_decoder_reads():
    data, old, new = EXAMPLE["record"]()
    assert f"The script prints `{data.hex()}`" in TEXT
    assert reference_values(data, old.view(np.uint32).tolist(), 6) == new.view(np.uint32).tolist()
    for mode in Record:
        assert f"| {mode.value} {mode.name} |" in TEXT
