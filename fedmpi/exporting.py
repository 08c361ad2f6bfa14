"""Models of a finished run as files for others, each checked: it gives the same embeddings as the run's own model."""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray

import fedmpi
from fedmpi import run_folder
from fedmpi.config import RunConfig, load_config
from fedmpi.errors import ConfigError, DataError
from fedmpi.federated import learner
from fedmpi.packed import pack_zeros, unpack_zeros
from fedmpi.reid.backbone import ReIDNet
from fedmpi.reid.transforms import MEAN, STD
from fedmpi.run_folder import RunFolder

FORMATS = ("safetensors", "torch", "onnx")
GLOBAL = "global"
BATCH = 4
TOLERANCE = 1e-4
"""Largest difference that another runtime's embeddings may have, as a share of the largest value."""


@dataclass(frozen=True)
class Exported:
    """What was written: path, bytes, share of the dense bytes, and how far the embeddings differ (0 = bit-equal)."""

    path: Path
    size: int
    dense: int
    difference: float


def export(run: Path, client: str, form: str, out: Path, *, sparse: bool = False) -> Exported:
    """Write one model of a run and check it; nothing is left of a file that fails the check.

    Parameters
    ----------
    run
        Folder of a finished run.
    client
        Name of a client, for its personalized model, or ``global``.
    form
        One of `FORMATS`.
    out
        The file, which must not exist.
    sparse
        Leave the zeros of pruned weights out (`fedmpi.packed`); not for ``onnx``.

    Raises
    ------
    ConfigError
        When there is no such model, ``out`` exists, or what the format needs is not installed.
    DataError
        When the written file does not give the embeddings of the model.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already and is never overwritten; choose another --out")
    if sparse and form == "onnx":
        raise ConfigError("--sparse is for safetensors and torch: ONNX runtimes compute with dense weights")
    folder = run_folder.reopen(run)
    config = load_config(folder.config)
    model = _load(_path(folder, client), config)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    facts = {"config": config, "client": client, "sparse": sparse}
    write, embed = _WAYS[form]
    try:
        write(out, model, _packed(state) if sparse else state, facts)
        difference = _difference(model, embed(out, config), config, exact=form != "onnx")
    except BaseException:
        out.unlink(missing_ok=True)
        raise
    return Exported(out, out.stat().st_size, sum(t.numel() * t.element_size() for t in state.values()), difference)


def load_exported(path: Path | str) -> dict[str, torch.Tensor]:
    """Return the state dict of an exported safetensors or torch file, whole, also when it was stored sparse."""
    path = Path(path)
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"  # torch's files are zip archives
    tensors = torch.load(path, weights_only=True)["state_dict"] if zipped else safetensors.torch.load_file(path)
    return unpack_zeros(tensors)


def description(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return what a user of the file must know, as texts: what goes in, what comes out, where it is from."""
    config: RunConfig = facts["config"]
    d = config.data
    return {
        "fedmpi": fedmpi.__version__,
        "client": facts["client"],
        "architecture": config.model.arch,
        "model": json.dumps(config.model.model_dump(mode="json", exclude={"weights"})),
        "input": f"float32[n, 3, {d.height}, {d.width}], RGB in [0, 1], resized (bilinear), minus mean, divided by std",
        "mean": json.dumps(MEAN),
        "std": json.dumps(STD),
        "output": "embeddings float32[n, D]; compare them by cosine",
        "config_digest": config.digest(),
        "zeros": "packed, see fedmpi.packed" if facts["sparse"] else "stored",
    }


def _path(folder: RunFolder, client: str) -> Path:
    if not folder.summary.exists():
        raise ConfigError(f"{folder.path} is not finished and has no models yet: fedmpi train --resume {folder.path}")
    names = sorted(path.stem for path in (folder.path / "clients").glob("*.safetensors"))
    if client != GLOBAL and client not in names:
        raise ConfigError(f"{folder.path} has no client {client!r}; there are {GLOBAL}, {', '.join(names)}")
    return folder.global_model if client == GLOBAL else folder.client_model(client)


def _load(path: Path, config: RunConfig) -> ReIDNet:
    """Return the run's model on the CPU, in evaluation mode."""
    try:
        return _filled(config, safetensors.torch.load_file(path))
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _filled(config: RunConfig, state: Mapping[str, torch.Tensor]) -> ReIDNet:
    untrained = config.model_copy(update={"model": config.model.model_copy(update={"weights": None})})
    model = learner.initial_model(untrained)
    missing, unexpected = model.load_state_dict(state, strict=False)
    # Counters of batches are not exchanged between ranks, and no result depends on them.
    wrong = [*(name for name in missing if not name.endswith("num_batches_tracked")), *unexpected]
    if wrong:
        raise DataError(f"the model does not fit its configuration: {', '.join(wrong[:5])}")
    return model.eval()


def _packed(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    floats = pack_zeros({name: tensor for name, tensor in state.items() if tensor.dtype == torch.float32})
    return {**floats, **{name: tensor for name, tensor in state.items() if tensor.dtype != torch.float32}}


def _batch(config: RunConfig) -> NDArray[np.float32]:
    shape = (BATCH, 3, config.data.height, config.data.width)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _difference(model: ReIDNet, embedded: NDArray[np.float32], config: RunConfig, *, exact: bool) -> float:
    with torch.inference_mode():
        expected = model(torch.from_numpy(_batch(config))).numpy()
    difference = float(np.abs(embedded - expected).max() / np.abs(expected).max())
    if not difference <= (0.0 if exact else TOLERANCE):
        raise DataError(f"the exported model gives other embeddings, by {difference:.2g} of the largest value")
    return difference


def _write_safetensors(out: Path, _: ReIDNet, state: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    run_folder.write_whole(out, safetensors.torch.save(dict(state), description(facts)))


def _write_torch(out: Path, _: ReIDNet, state: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    torch.save({"state_dict": dict(state), "description": description(facts)}, out)


def _write_onnx(out: Path, model: ReIDNet, _: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    onnx, _runtime = _onnx()
    images = torch.from_numpy(_batch(facts["config"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about itself
        program = torch.onnx.export(
            model,
            (images,),
            input_names=["images"],
            output_names=["embeddings"],
            dynamic_shapes={"images": {0: torch.export.Dim.DYNAMIC}},
            dynamo=True,
            verbose=False,
        )
    proto = program.model_proto  # type: ignore[union-attr]
    onnx.helper.set_model_props(proto, description(facts))
    run_folder.write_whole(out, proto.SerializeToString())


def _onnx() -> tuple[Any, Any]:
    try:
        import onnx  # noqa: PLC0415 - an extra
        import onnxruntime  # noqa: PLC0415 - an extra
        import onnxscript  # noqa: F401, PLC0415 - an extra, which torch needs
    except ImportError as error:
        raise ConfigError(f"--format onnx needs the extra: pip install 'fedmpi[onnx]' ({error})") from error
    return onnx, onnxruntime


def _embed_torch(out: Path, config: RunConfig) -> NDArray[np.float32]:
    model = _filled(config, load_exported(out))
    with torch.inference_mode():
        embedded: NDArray[np.float32] = model(torch.from_numpy(_batch(config))).numpy()
    return embedded


def _embed_onnx(out: Path, config: RunConfig) -> NDArray[np.float32]:
    _, runtime = _onnx()
    session = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    # One batch of all and one of a single image: the number of images must be free.
    images = _batch(config)
    whole, one = (session.run(["embeddings"], {"images": part})[0] for part in (images, images[:1]))
    if whole.shape[0] != BATCH or one.shape[0] != 1:
        raise DataError(f"{out}: the number of images in a batch is not free")
    return np.asarray(whole)


_WAYS: dict[str, tuple[Callable[..., None], Callable[[Path, RunConfig], NDArray[np.float32]]]] = {
    "safetensors": (_write_safetensors, _embed_torch),
    "torch": (_write_torch, _embed_torch),
    "onnx": (_write_onnx, _embed_onnx),
}
