import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from fedmpi.record import document, schema
from fedmpi.record.messages import MESSAGE_COLUMNS, MESSAGE_DTYPE

DOCUMENT = Path(__file__).parents[2] / "docs" / "hdf5-schema.md"


def datasets(file):
    found = {}
    file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    return found


@pytest.fixture(params=["working", "packed"])
def file(request, create, finished):
    if request.param == "packed":
        path = finished
    else:
        writer = create("other.h5")
        path = writer.path
        writer._file.close()
    with h5py.File(path) as opened:
        yield opened


def test_every_dataset_has_units_and_a_long_name(file):
    found = datasets(file)
    assert len(found) > 80
    for name, dataset in found.items():
        assert dataset.attrs["units"] in ({"see unit_*"} if name == "messages/table" else {"s", "byte", "1"}), name
        assert len(dataset.attrs["long_name"]) > 3, name


def test_every_variable_has_its_dimension_scales_in_its_own_group(file):
    for group, variables in schema.GROUPS.items():
        for variable in variables:
            dataset = file[group][variable.name]
            scales = [dim[0].name for dim in dataset.dims]
            assert scales == [f"/{group}/{dim}" for dim in variable.dims]
            assert dataset.dtype == variable.on_disk
            assert dataset.dtype.byteorder in "<|="
            assert dataset.maxshape[0] == (None if variable.dims[0] == "round" else 3)


def test_every_message_column_has_a_unit(file):
    table = file["messages/table"]
    assert table.dtype == MESSAGE_DTYPE
    for column in MESSAGE_DTYPE.names:
        assert table.attrs[f"unit_{column}"] == MESSAGE_COLUMNS[column][1]


def test_groups_name_what_a_viewer_plots(file):
    for group in schema.GROUPS:
        attributes = file[group].attrs
        assert attributes["NX_class"] == "NXdata"
        assert file[group][attributes["signal"]].ndim == len(attributes["axes"])


def test_units_fit_the_names():
    for variables in schema.GROUPS.values():
        for variable in variables:
            unit = {"bytes": "byte", "seconds": "s", "started": "s"}.get(variable.name.split("_")[0], "1")
            assert variable.unit == unit, variable.name
            assert variable.dtype == "i8" or unit != "byte"


def test_default_survives_its_dtype():
    for variables in schema.GROUPS.values():
        for variable in variables:
            stored = np.array(variable.fill).astype(variable.on_disk)
            assert stored == variable.fill or (np.isnan(stored) and np.isnan(variable.fill))


def test_names_are_unique_and_plain():
    for variables in schema.GROUPS.values():
        names = [variable.name for variable in variables]
        assert len(set(names)) == len(names)
        assert all(name.isidentifier() and name.islower() for name in names)


def test_the_document_lists_the_schema_as_it_is():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert document.updated(text) == text, "run: python -m fedmpi.record.document docs/hdf5-schema.md"
    assert text.count("| `") > 90


def test_the_room_loads_neither_torch_nor_mpi_nor_the_analysis_libraries():
    code = "import sys, fedmpi.record; print(*(m for m in sys.argv[1:] if m in sys.modules))"
    unwanted = ["torch", "mpi4py", "pandas", "xarray", "tables", "click", "fedmpi.config", "fedmpi.federated"]
    result = subprocess.run([sys.executable, "-c", code, *unwanted], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
