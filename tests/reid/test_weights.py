"""Weight files: what is read, what is refused, and that a refused file leaves no trace."""

import hashlib
import random
import warnings

import pytest
import safetensors.torch
import torch
from torch import nn

from fedmpi.errors import DataError
from fedmpi.reid.backbone import build_backbone
from fedmpi.reid.weights import architecture, load_weights


def small_net(seed):
    torch.manual_seed(seed)
    net = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(3, 4, 3, bias=False))
    net.add_module("bn1", nn.BatchNorm2d(4))
    net.bn1.running_mean.normal_()
    return net


@pytest.fixture
def net():
    return small_net(0)


@pytest.fixture
def state():
    return small_net(1).state_dict()


def assert_same(net, state):
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)


def test_state_dict_of_torch(net, state, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(state, path)
    assert load_weights(net, path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert_same(net, state)


def test_old_torch_format(net, state, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    load_weights(net, path)
    assert_same(net, state)


def test_safetensors(net, state, tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(state, path)
    assert load_weights(net, path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert_same(net, state)


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "base.", "module.base.", "model.", "module.model."])
@pytest.mark.parametrize("classifier", ["fc.weight", "classifier.weight", "classifier.add_block.0.bias"])
@pytest.mark.parametrize("container", ["state_dict", "model"])
def test_checkpoint_with_prefix_and_classifier(net, state, tmp_path, prefix, classifier, container):
    path = tmp_path / "w.pth"
    named = {prefix + name: tensor for name, tensor in state.items()}
    named[prefix + classifier] = torch.zeros(1000, 4)
    torch.save({"epoch": 3, "rank1": 0.5, container: named}, path)
    load_weights(net, path)
    assert_same(net, state)


def test_half_precision_is_converted(net, state, tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, path)
    load_weights(net, path)
    assert net.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(net.conv1.weight, state["conv1.weight"].half().float(), rtol=0, atol=0)


def test_counter_may_be_absent_and_stays(net, state, tmp_path):
    path = tmp_path / "w.pth"
    net.bn1.num_batches_tracked.fill_(7)
    torch.save({name: tensor for name, tensor in state.items() if "tracked" not in name}, path)
    load_weights(net, path)
    assert int(net.bn1.num_batches_tracked) == 7


def test_loading_keeps_parameters_trainable_and_in_place(net, state, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(state, path)
    before = net.conv1.weight
    load_weights(net, path)
    assert net.conv1.weight is before
    assert before.requires_grad
    assert before.is_leaf


def test_missing_file_says_where_to_get_it(net, tmp_path):
    with pytest.raises(DataError, match=r"absent\.pth: no such weight file: nothing is downloaded.*IMAGENET1K_V1"):
        load_weights(net, tmp_path / "absent.pth")


def test_folder_instead_of_file(net, tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        load_weights(net, tmp_path)


def test_all_mistakes_are_listed_and_nothing_changes(net, state, tmp_path):
    path = tmp_path / "w.pth"
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    del state["bn1.running_var"]
    state["conv1.weight"] = torch.zeros(4, 3, 7, 7)
    state["bn1.bias"][2] = torch.nan
    state["layer9.weight"] = torch.zeros(2)
    torch.save(state, path)
    with pytest.raises(DataError) as caught:
        load_weights(net, path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    for part in (
        "bn1.running_var[4] is missing",
        "conv1.weight[4, 3, 7, 7] should be [4, 3, 3, 3]",
        "bn1.bias[4] is not finite",
        "layer9.weight[2] is unknown to the model",
    ):
        assert part in message
    assert_same(net, before)


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"state_dict": {"a": 1}}, {"a": 1.0}, {3: torch.zeros(2)}])
def test_not_a_state_dict(net, tmp_path, content):
    path = tmp_path / "w.pth"
    torch.save(content, path)
    with pytest.raises(DataError, match="no state dict"):
        load_weights(net, path)


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_pickled_code_is_not_run(net, tmp_path):
    path, marker = tmp_path / "w.pth", tmp_path / "marker"
    torch.save({"conv1.weight": Evil(marker)}, path)
    with pytest.raises(DataError, match="not a readable weight file: damaged, or it holds more than tensors"):
        load_weights(net, path)
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_damaged_files_only_raise_data_error(net, state, tmp_path, kind):
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    content, refused = path.read_bytes(), 0
    draw = random.Random(0)
    for _ in range(150):
        damaged = bytearray(content[: draw.randrange(len(content))] if draw.random() < 0.5 else content)
        if damaged:
            damaged[draw.randrange(len(damaged))] ^= 1 + draw.randrange(255)
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                load_weights(net, path)
            except DataError:
                refused += 1
    assert refused > 75  # at least the truncated ones


# ---- a neck in the file


def with_neck(state, name, size=4):
    neck = nn.BatchNorm1d(size)
    neck.running_mean.normal_()
    return {**state, **{f"{name}.{key}": tensor for key, tensor in neck.state_dict().items()}}, neck.state_dict()


@pytest.mark.parametrize("name", ["neck", "bottleneck"])
def test_a_neck_goes_where_it_belongs(net, state, tmp_path, name):
    path, target = tmp_path / "w.safetensors", nn.BatchNorm1d(4)
    whole, wanted = with_neck(state, name)
    safetensors.torch.save_file(whole, path)
    load_weights(net, path, target)
    assert_same(net, state)
    assert_same(target, wanted)


def test_a_neck_that_does_not_fit_leaves_both_alone(net, state, tmp_path):
    path, target = tmp_path / "w.safetensors", nn.BatchNorm1d(4)
    whole, _ = with_neck(state, "neck", size=5)
    safetensors.torch.save_file(whole, path)
    with pytest.raises(DataError, match=r"neck\.weight\[5\] should be \[4\]"):
        load_weights(net, path, target)
    with pytest.raises(DataError, match=r"neck\.weight\[5\] is unknown to the model"):
        load_weights(net, path)
    assert_same(net, small_net(0).state_dict())
    assert not target.running_mean.any()


def test_without_a_neck_in_the_file_the_neck_stays(net, state, tmp_path):
    path, target = tmp_path / "w.safetensors", nn.BatchNorm1d(4)
    target.weight.data.fill_(3)
    safetensors.torch.save_file(state, path)
    load_weights(net, path, target)
    assert (target.weight == 3).all()


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50"])
def test_architecture_is_read_off_the_names(arch, tmp_path):
    net = build_backbone(arch, seed=0)
    names = [name for name in net.state_dict() if "layer1" in name]
    safetensors.torch.save_file({name: torch.zeros(1) for name in names}, tmp_path / "w.safetensors")
    assert architecture(tmp_path / "w.safetensors") == arch
