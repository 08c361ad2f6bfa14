"""Layout: names, places, round trips; torch's own state_dict and parameters_to_vector are the oracles."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

from fedmpi.errors import WireError
from fedmpi.sparse import Layout


def net():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5, 7, bias=False))
    model[1].running_mean.normal_()
    model[1].bias.requires_grad_(False)
    return model


def test_places_cover_all_parameters_in_order():
    model = net()
    layout = Layout.of(model)
    assert layout.names == tuple(name for name, _ in model.named_parameters())
    assert [t.slice for t in layout.tensors] == [
        slice(0, 135), slice(135, 140), slice(140, 145), slice(145, 150), slice(150, 185),
    ]  # fmt: skip
    assert layout.prunable == (True, False, False, False, True)
    assert layout.size == 185
    assert layout.buffer_names == ("1.running_mean", "1.running_var")
    assert layout.buffer_size == 10


def test_flatten_is_parameters_to_vector():
    model = net()
    theta, buffers = Layout.of(model).flatten(model)
    assert theta.dtype == buffers.dtype == np.float32
    assert np.array_equal(theta, parameters_to_vector(model.parameters()).detach().numpy())
    assert np.array_equal(buffers, np.r_[model[1].running_mean.numpy(), model[1].running_var.numpy()])


def test_flatten_copies():
    model = net()
    layout = Layout.of(model)
    theta, _ = layout.flatten(model)
    theta[:] = 0
    assert model[0].weight.abs().sum() > 0


def test_flatten_single_tensor_copies():
    model = nn.Linear(3, 2, bias=False)
    theta, _ = Layout.of(model).flatten(model)
    theta[:] = 0
    assert model.weight.abs().sum() > 0


def test_load_restores_every_bit_in_place():
    source, target = net(), net()
    layout = Layout.of(source)
    with torch.no_grad():
        for tensor in (*source.parameters(), *source.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape))
    addresses = [p.data_ptr() for p in target.parameters()]
    layout.load(target, *layout.flatten(source))
    assert addresses == [p.data_ptr() for p in target.parameters()]
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name]), name


def test_load_accepts_read_only_vectors():
    model = net()
    layout = Layout.of(model)
    theta, buffers = layout.flatten(model)
    theta.flags.writeable = buffers.flags.writeable = False
    layout.load(model, theta, buffers)


def test_channels_last_has_the_same_vector():
    model = net()
    layout = Layout.of(model)
    expected, _ = layout.flatten(model)
    found, _ = layout.flatten(model.to(memory_format=torch.channels_last))
    assert np.array_equal(found, expected)


def test_counters_stay_local():
    source, target = net(), net()
    source[1].num_batches_tracked += 41
    layout = Layout.of(source)
    layout.load(target, *layout.flatten(source))
    assert int(target[1].num_batches_tracked) == 0


def test_state_dict_loads_and_owns_its_memory():
    model = net()
    layout = Layout.of(model)
    theta, buffers = layout.flatten(model)
    state = layout.state_dict(theta, buffers)
    theta[:] = 0
    result = net().load_state_dict(state, strict=False)
    # for a plain dict, which has no version metadata, torch fills the counter in and does not report it
    assert set(result.missing_keys) <= {"1.num_batches_tracked"}
    assert result.unexpected_keys == []
    assert torch.equal(state["0.weight"], model[0].weight)
    assert len({tensor.untyped_storage().data_ptr() for tensor in state.values()}) == len(state)


def test_empty_module():
    model = nn.Flatten()
    layout = Layout.of(model)
    theta, buffers = layout.flatten(model)
    assert theta.shape == buffers.shape == (0,)
    layout.load(model, theta, buffers)
    assert layout.size == layout.buffer_size == 0


def test_shared_parameter_counts_once():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    assert Layout.of(model).size == 9


def test_non_persistent_buffers_are_not_exchanged():
    model = nn.Flatten()
    model.register_buffer("grid", torch.ones(4), persistent=False)
    assert Layout.of(model).buffer_size == 0


@pytest.mark.parametrize(
    "other",
    [
        Layout(("a", "c"), ((2, 3), (4,))),
        Layout(("b", "a"), ((4,), (2, 3))),
        Layout(("a", "b"), ((3, 2), (4,))),
        Layout(("a", "b"), ((2, 3), (4, 1))),
        Layout(("a",), ((2, 3),)),
        Layout(("a",), ((2, 3),), ("b",), ((4,),)),
        Layout(("ab", ""), ((2, 3), (4,))),
    ],
)
def test_hash_tells_layouts_apart(other):
    layout = Layout(("a", "b"), ((2, 3), (4,)))
    assert layout.hash != other.hash
    assert len(layout.hash) == 8


def test_hash_is_stable_over_versions():
    # Part of the wire format: changing it makes versions incompatible, and needs a new version number.
    assert Layout(("a", "b"), ((2, 3), (4,)), ("m",), ((4,),)).hash.hex() == "13a63c18e8f224ae"


def test_other_module_is_refused_by_name():
    layout = Layout.of(net())
    other = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6, 7, bias=False))
    with pytest.raises(WireError, match=r"parameter 0 is 0\.weight \[6, 3, 3, 3\], expected 0\.weight \[5, 3, 3, 3\]"):
        layout.flatten(other)


def test_missing_tensor_is_refused():
    layout = Layout.of(net())
    with pytest.raises(WireError, match="4 parameters, expected 5"):
        layout.flatten(net()[:3])


def test_half_precision_is_refused():
    with pytest.raises(WireError, match=r"'0\.weight' is torch\.float16"):
        Layout.of(net().half())


@pytest.mark.parametrize(
    ("theta", "buffers", "message"),
    [
        (
            np.zeros(184, np.float32),
            np.zeros(10, np.float32),
            r"theta is float32\[184\], the layout needs float32\[185\]",
        ),
        (np.zeros(185), np.zeros(10, np.float32), "theta is float64"),
        (np.zeros(185, np.float32), np.zeros((10, 1), np.float32), "buffers is float32"),
    ],
)
def test_wrong_vectors_are_refused(theta, buffers, message):
    with pytest.raises(WireError, match=message):
        Layout.of(net()).load(net(), theta, buffers)
