"""Weights from a local file; nothing is ever downloaded, and no pickled code is run.

Two formats are read: safetensors, and PyTorch files through ``torch.load(weights_only=True)`` (tensors and plain
containers only), holding a state dict or a dict with one under ``state_dict`` or ``model``. So torchvision's ImageNet
files, the models that fedmpi saves, and checkpoints of FedReID, torchreid and their kin all load: the prefixes that
training codes put before torchvision's names are stripped, and classifiers (``fc``, ``classifier``) are ignored.
"""

import hashlib
import io
import pickle
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from fedmpi.errors import DataError

_PREFIXES = ("module.", "backbone.", "base.", "model.")
_CLASSIFIERS = ("fc.", "classifier.")
_NECKS = ("neck.", "bottleneck.")
_CONTAINERS = ("state_dict", "model")
_WHERE = (
    "nothing is downloaded; fetch the file of torchvision's ResNet50_Weights.IMAGENET1K_V1 "
    "(https://download.pytorch.org/models/resnet50-0676ba61.pth; resnet34-b627a593.pth, resnet18-f37072fd.pth) "
    "and give its path as model.weights"
)


def load_weights(module: nn.Module, path: Path, neck: nn.Module | None = None) -> str:
    """Load a file into ``module`` in place.

    The file must hold every parameter and floating-point buffer of ``module`` in its shape, and nothing else apart from
    a classifier, and a BN-neck if there is a ``neck`` to load it into. Values are converted to the module's dtype.

    Returns
    -------
    The sha256 of the file's bytes, in hexadecimal; the bytes hashed are the bytes loaded.

    Raises
    ------
    DataError
        When the file is missing or unreadable, or a tensor is missing, unknown, of another shape or not finite.
        ``module`` and ``neck`` are then unchanged.
    """
    content = _read(path)
    state = _strip(_tensors(content, path))
    wanted = module.state_dict()
    if neck is not None and any(name.startswith("neck.") for name in state):
        wanted |= {f"neck.{name}": tensor for name, tensor in neck.state_dict().items()}
    mistakes = _mistakes(state, wanted)
    if mistakes:
        message = f"{path}: does not fit the model: {'; '.join(mistakes)}"
        raise DataError(message)
    with torch.no_grad():
        for name, tensor in wanted.items():
            if name in state:
                tensor.copy_(state[name])
    return hashlib.sha256(content).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        message = f"{path}: no such weight file: {_WHERE}"
        raise DataError(message) from None
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror}): {_WHERE}"
        raise DataError(message) from error


def _tensors(content: bytes, path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(content)
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its text advises to load it all the same
        what = "damaged, or it holds more than tensors, such as code, which is never loaded"
        message = f"{path}: not a readable weight file: {what}; expected safetensors or a PyTorch state dict"
        raise DataError(message) from error
    except Exception as error:  # a damaged file raises nearly anything: KeyError, struct.error, AssertionError, ...
        reason = str(error).strip().splitlines() or [type(error).__name__]
        message = f"{path}: not a readable weight file ({reason[0]}): expected safetensors or a PyTorch state dict"
        raise DataError(message) from error
    inner = (
        loaded[name] for name in _CONTAINERS if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping)
    )
    state = next(inner, loaded)
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        message = f"{path}: holds no state dict of tensors, neither at its top nor under 'state_dict' or 'model'"
        raise DataError(message)
    return dict(state)


def _strip(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state without known prefixes and classifiers, the neck under our name."""
    stripped = {}
    for name, tensor in state.items():
        short = name
        while short.startswith(_PREFIXES):
            short = short.split(".", 1)[1]
        if short.startswith(_NECKS):
            short = f"neck.{short.split('.', 1)[1]}"
        if not short.startswith(_CLASSIFIERS):
            stripped[short] = tensor
    return stripped


def _mistakes(state: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> list[str]:
    mistakes = [
        f"{name}{list(tensor.shape)} is missing"
        for name, tensor in wanted.items()
        if name not in state and tensor.is_floating_point()  # old files lack the counter num_batches_tracked
    ]
    for name, tensor in state.items():
        if name not in wanted:
            mistakes.append(f"{name}{list(tensor.shape)} is unknown to the model")
        elif tensor.shape != wanted[name].shape:
            mistakes.append(f"{name}{list(tensor.shape)} should be {list(wanted[name].shape)}")
        elif not bool(torch.isfinite(tensor).all()):
            mistakes.append(f"{name}{list(tensor.shape)} is not finite")
    return mistakes


def architecture(path: Path) -> str:
    """Return which of the backbones a file holds, by the names in it: ``resnet18``, ``resnet34`` or ``resnet50``.

    Raises
    ------
    DataError
        When the file is missing or unreadable.
    """
    names = _strip(_tensors(_read(path), path))
    if "layer1.0.conv3.weight" in names:
        return "resnet50"
    return "resnet34" if "layer1.2.conv1.weight" in names else "resnet18"
