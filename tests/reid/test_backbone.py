"""The network: sizes, strides, stem, neck, initial values, precision."""

import pytest
import torch
import torchvision
from torch import nn

from fedmpi.errors import DataError
from fedmpi.reid.backbone import build_backbone


@pytest.mark.parametrize(
    ("arch", "dim", "parameters", "conv_weights"),
    [("resnet50", 2048, 23_512_128, 23_454_912), ("resnet34", 512, 21_285_696, 21_267_648)],
)
def test_parameter_counts_of_the_paper(arch, dim, parameters, conv_weights):
    net = build_backbone(arch, seed=0)
    assert net.dim == dim
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
    assert sum(module.weight.numel() for module in net.modules() if isinstance(module, nn.Conv2d)) == conv_weights
    assert not any(isinstance(module, nn.Linear) for module in net.modules())


@pytest.mark.parametrize(
    ("arch", "changed"),
    [
        ("resnet50", {"layer4.0.conv2", "layer4.0.downsample.0"}),
        ("resnet34", {"layer4.0.conv1", "layer4.0.downsample.0"}),
        ("resnet18", {"layer4.0.conv1", "layer4.0.downsample.0"}),
    ],
)
def test_last_stride_changes_these_two_convolutions_only(arch, changed):
    ours = dict(build_backbone(arch, last_stride=1, seed=0).base.named_modules())
    theirs = getattr(torchvision.models, arch)(weights=None).named_modules()
    different = {
        name: (ours[name].stride, module.stride)
        for name, module in theirs
        if isinstance(module, nn.Conv2d) and ours[name].stride != module.stride
    }
    assert different == dict.fromkeys(changed, ((1, 1), (2, 2)))


@pytest.mark.parametrize(("stride", "size"), [(1, (16, 8)), (2, (8, 4))])
def test_map_of_a_256x128_image(stride, size):
    net = build_backbone("resnet18", last_stride=stride, seed=0).eval()
    shapes = []
    net.base.layer4.register_forward_hook(lambda module, args, output: shapes.append(output.shape[2:]))
    with torch.no_grad():
        z = net(torch.zeros(1, 3, 256, 128))
    assert shapes == [torch.Size(size)]
    assert z.shape == (1, 512)
    assert z.dtype == torch.float32


def torchvision_features(tmp_path, images):
    """Return a weight file of a random torchvision ResNet-18 and its pooled features."""
    torch.manual_seed(5)
    model = torchvision.models.resnet18(weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    model.fc = nn.Identity()
    return tmp_path / "resnet18.pth", model.eval()(images).detach()


def test_with_loaded_weights_it_is_torchvisions_network_and_a_neck(tmp_path):
    images = torch.rand(3, 3, 64, 32)
    path, pooled = torchvision_features(tmp_path, images)
    net = build_backbone("resnet18", weights=path, last_stride=2, seed=0).eval()
    net.neck.running_mean.normal_()
    net.neck.running_var.uniform_(0.5, 2)
    expected = (pooled - net.neck.running_mean) / torch.sqrt(net.neck.running_var + 1e-5)
    torch.testing.assert_close(net(images).detach(), expected, rtol=1e-4, atol=1e-5)
    assert len(net.weights_sha256) == 64


def test_weights_of_another_depth_are_refused(tmp_path):
    path, _ = torchvision_features(tmp_path, torch.zeros(1, 3, 32, 32))
    with pytest.raises(DataError, match=r"layer1\.2\.conv1\.weight\[64, 64, 3, 3\] is missing"):
        build_backbone("resnet34", weights=path, seed=0)
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), path)
    with pytest.raises(DataError, match=r"layer1\.2\.conv1\.weight\[64, 64, 3, 3\] is unknown"):
        build_backbone("resnet18", weights=path, seed=0)


@pytest.mark.parametrize("stem_relu", [True, False])
def test_stem_relu(stem_relu):
    net = build_backbone("resnet18", stem_relu=stem_relu, seed=0).eval()
    seen = []
    net.base.maxpool.register_forward_pre_hook(lambda module, args: seen.append(args[0].min().item()))
    net(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert (seen[0] >= 0) == stem_relu
    assert isinstance(net.base.layer1[0].relu, nn.ReLU)


def test_neck_output_has_unit_variance_and_its_bias_stays_zero():
    net = build_backbone("resnet18", seed=0).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1, weight_decay=0.1)
    z = net(torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(z.mean(dim=0), torch.zeros(512), rtol=0, atol=1e-4)
    assert (z.detach().var(dim=0, correction=0) - 1).abs().median() < 0.01
    z.pow(3).sum().backward()
    optimizer.step()
    assert "neck.bias" in dict(net.named_parameters())
    assert not net.neck.bias.any()
    assert bool((net.neck.weight != 1).any())


def test_initial_values_come_from_the_seed_alone():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = build_backbone("resnet18", seed=2**62 + 1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    again, other = build_backbone("resnet18", seed=2**62 + 1), build_backbone("resnet18", seed=2)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.base.conv1.weight, other.base.conv1.weight)


def test_initial_values_are_torchvisions():
    torch.manual_seed(3)
    expected = torchvision.models.resnet18(weights=None).layer3[1].conv2.weight
    assert torch.equal(build_backbone("resnet18", seed=3).base.layer3[1].conv2.weight, expected)


def test_embedding_is_float32_under_autocast():
    net = build_backbone("resnet18", seed=0).train()
    inside = []
    net.base.register_forward_hook(lambda module, args, output: inside.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = net(torch.rand(2, 3, 32, 32))
    assert inside == [torch.bfloat16]
    assert z.dtype == torch.float32


def test_double_precision_network():
    assert build_backbone("resnet18", seed=0).double()(torch.rand(2, 3, 32, 32).double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "text"),
    [({"arch": "resnet101"}, "'resnet101': expected one of resnet18, resnet34, resnet50"), ({"last_stride": 3}, "3")],
)
def test_unknown_values_are_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        build_backbone(seed=0, **arguments)
