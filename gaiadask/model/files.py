"""A trained model as two files, weights.safetensors and card.json, and the object that encodes and decodes with it.

The card is written last and names the weights' sha256, so a pair that was not written together is refused, not used.
"""

from __future__ import annotations

import platform
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import safetensors.torch
from pydantic import ValidationError
from safetensors import SafetensorError

from gaiadask.config.sections import ModelConfig
from gaiadask.errors import KeyMismatchError, StoreError
from gaiadask.inputs.transform import Transform
from gaiadask.model.networks import Autoencoder
from gaiadask.release.column import DEC, RA
from gaiadask.store.artifact import Pair
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths

if TYPE_CHECKING:
    pass
from gaiadask.model.star_model import StarModel

FORMAT_VERSION = 2


def new_network(transform: Transform, config: ModelConfig) -> Autoencoder:
    """The untrained network that the configuration describes for this transform's columns."""
    return Autoencoder(
        n_values=transform.n_values,
        n_conditions=transform.n_conditions,
        latents=config.latents,
        hidden=config.hidden,
        variational=config.preset == "vae",
        linear_path=config.linear_path,
        activation=config.activation,
        batch_norm=config.batch_norm,
        sigmoid=config.loss == "bce",
    )


def _pair(run: RunPaths) -> Pair:
    remedy = "make it again with `gaiadask train --replace train`, or restore both files of model/ from one backup"
    return Pair(run.weights, run.card, FORMAT_VERSION, remedy)


def save_model(
    store: Store,
    run_paths: RunPaths,
    network: Autoencoder,
    transform: Transform,
    config: ModelConfig,
    *,
    key: str,
    training: dict[str, Any],
    metrics: dict[str, Any],
    latents: list[dict[str, float]],
    errors: dict[str, dict[str, float]] | None = None,
    metadata: dict[str, Any] | None = None,
) -> StarModel:
    """Write the model's two files and return it.

    training: the [training] section and what came of it. metrics: of the best validation. latents: for each latent its
    mean `kl` (nats a star) and the `mean` and `std` of its value over validation stars. errors: as
    `gaiadask.objective.value_errors` tells them. metadata: put into the card as it is. Raises StoreError where the store cannot be written; then the card is absent.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    content = safetensors.torch.save(weights)
    card = {
        "key": key,
        "columns": describe_columns(transform),
        "transform": transform.to_json(),
        "model": config.model_dump(mode="json"),
        "training": training,
        "metrics": metrics,
        "latents": latents,
        "errors": errors or {},
        "metadata": metadata or {},
        "versions": _versions(),
    }
    return StarModel(network, transform, _pair(run_paths).save(store, content, card))


def load_model(store: Store, run_paths: RunPaths, device: str = "cpu") -> StarModel:
    """Read a model. Raises StoreError, naming the file and the remedy, where either file is missing, damaged, of another
    format version, or not of the other's making."""
    pair = _pair(run_paths)
    content, card = pair.load(store)
    try:
        transform = Transform.from_json(card["transform"])
        network = new_network(transform, ModelConfig.model_validate(card["model"]))
        network.load_state_dict(safetensors.torch.load(content))
    except (KeyError, TypeError, ValueError, ValidationError, RuntimeError, SafetensorError) as error:
        where = store.uri_of(pair.card)
        raise StoreError(f"{where} and its weights do not describe one model ({error}): {pair.remedy}") from error
    return StarModel(network.to(device).eval(), transform, card)


def load_model_cached(store: Store, run_paths: RunPaths, key: str) -> StarModel:
    """The model of this key, its weights read once a process. Raises KeyMismatchError where the store holds another.

    By its weights, not its key: two trainings of one key are not always one model (another machine, other threads).
    """
    model = _read_once(store, run_paths, _pair(run_paths).identity(store))
    if model.key != key:
        raise KeyMismatchError(
            f"{store.uri_of(run_paths.card)} is the model of key {model.key}, expected {key}: it was trained anew meanwhile. "
            "Run the stages from `train` on again"
        )
    return model


@lru_cache(maxsize=2)
def _read_once(store: Store, run_paths: RunPaths, identity: str) -> StarModel:
    return load_model(store, run_paths)


def describe_columns(transform: Transform) -> list[dict[str, Any]]:
    """The card's columns, in the order of the null mask's bits: name, unit, UCD, type and role.

    role: free (a value of the network), derived (computed from others), constant (no value in the network), or position.
    """
    return [
        {
            "name": name,
            "unit": transform.release.columns[name].unit,
            "ucd": transform.release.columns[name].ucd,
            "dtype": str(transform.release.columns[name].dtype),
            "role": _role(name, transform),
        }
        for name in transform.columns
    ]


def _role(name: str, transform: Transform) -> str:
    if name in (RA, DEC) and name not in transform.free:
        return "position"
    if name in transform.derived:
        return "derived"
    return "constant" if name in transform.constant else "free"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("gaiadask", "torch", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
