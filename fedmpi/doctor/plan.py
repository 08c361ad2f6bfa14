"""The run that a configuration describes: its clients, its data, its model, and what it needs."""

from typing import TYPE_CHECKING

from fedmpi.doctor.findings import Part
from fedmpi.errors import DataError

if TYPE_CHECKING:
    from fedmpi.config import RunConfig

BASE_BYTES, MODEL_COPIES = 600_000_000, 12
"""Memory of a rank, roughly: the libraries, and the model, its teacher, gradients, moments and flat copies."""


def client_names(settings: "RunConfig", part: Part) -> tuple[str, ...]:
    """Return the clients, empty where the data cannot be found."""
    try:
        from fedmpi.reid.datasets import client_names as names  # noqa: PLC0415 - needs libraries that may not load

        return names(settings.data, settings.run.seed)
    except DataError as error:
        part.error(str(error))
    except ImportError:
        pass  # reported with the installation
    return ()


def plan(settings: "RunConfig", names: tuple[str, ...]) -> Part:
    """Return what would run; images in folders are listed and one of each client is read, drawn ones are not drawn."""
    part = Part("run")
    part.facts["configuration"] = settings.run.name
    part.facts["clients"] = len(names)
    part.facts["data"] = "embedded drawn people" if settings.data.root is None else str(settings.data.root)
    if settings.data.root is not None:
        _look_at_images(settings, names, part)
    _build_model(settings, part)
    for caution in settings.warnings():
        part.warning(caution)
    return part


def _look_at_images(settings: "RunConfig", names: tuple[str, ...], part: Part) -> None:
    from fedmpi.reid.datasets import load_client  # noqa: PLC0415 - slow

    images = 0
    for index, name in enumerate(names):
        try:
            client = load_client(settings.data, settings.run.seed, index)
            images += sum(map(len, (client.train, client.query, client.gallery)))
            client.train.pixels.read(0)
        except DataError as error:
            part.error(f"client {index} ({name}): {error}")
    part.facts["images"] = images


def _build_model(settings: "RunConfig", part: Part) -> None:
    try:
        from fedmpi.federated.learner import initial_model  # noqa: PLC0415 - needs libraries that may not load

        parameters = sum(parameter.numel() for parameter in initial_model(settings).parameters())
    except DataError as error:
        part.error(str(error), "give another file as model.weights")
        return
    except (ImportError, RuntimeError):
        return  # reported with the installation
    part.facts["model"] = f"{settings.model.arch}, {parameters:,} parameters"
    part.facts["dense_model_bytes"] = 4 * parameters


def needs(part: Part) -> tuple[int, int]:
    """Return what a run needs, roughly: bytes of memory per rank, and bytes of disk for the final models."""
    model = int(part.facts.get("dense_model_bytes") or 0)
    return BASE_BYTES + MODEL_COPIES * model, (int(part.facts["clients"] or 0) + 1) * model
