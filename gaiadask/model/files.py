"""A trained model as two files, weights.safetensors and card.json.

The card is written last and names the weights' sha256, so two files that were not written together are refused.
"""

from __future__ import annotations

import platform
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

import safetensors.torch
from pydantic import ValidationError
from safetensors import SafetensorError

from gaiadask.config.model import ModelConfig
from gaiadask.config.presets import MOST_BITS
from gaiadask.errors import ConfigurationError, KeyMismatchError, StoreError
from gaiadask.inputs.masses import kind_of
from gaiadask.inputs.transform import Transform
from gaiadask.model.card import CardColumn, ColumnRole, ModelCard, TrainingOutcome, latent_names
from gaiadask.model.cells import Cells
from gaiadask.model.device import torch_device
from gaiadask.model.flow import Flow, FlowShape
from gaiadask.model.networks import Autoencoder, NetworkShape
from gaiadask.model.rounding import LatentCode
from gaiadask.model.star_model import StarModel
from gaiadask.release.column import DEC, RA
from gaiadask.store.artifact import Artifact
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths

FORMAT_VERSION = 2


def new_network(transform: Transform, config: ModelConfig, bits: int = 0) -> Autoencoder | Flow:
    """The untrained network that the configuration describes for this transform's columns. bits: of a star, where latents are rounded.

    Raises:
        ConfigurationError: for a budget that a flow's latents cannot have.
    """
    if config.preset == "flow":
        if bits and not transform.n_values <= bits <= MOST_BITS * transform.n_values:
            raise ConfigurationError(
                f"latent.bits = {bits}: expected {transform.n_values} to {MOST_BITS * transform.n_values} bits a star for the {transform.n_values} "
                f"latents of preset 'flow', 1 to {MOST_BITS} for each, or 0 for latents that are not rounded"
            )
        shape = FlowShape(transform.n_values, transform.n_conditions, config.hidden, transform.null_numbers, bits)
        return Flow(shape, Cells.of(transform.cells))
    return Autoencoder(
        NetworkShape(
            n_values=transform.n_values,
            n_conditions=transform.n_conditions,
            latents=config.latents,
            hidden=config.hidden,
            variational=config.preset == "vae" and not bits,
            linear_path=config.linear_path,
            activation=config.activation,
            batch_norm=config.batch_norm,
            sigmoid=config.loss == "bce",
            bits=bits,
        )
    )


def _artifact(run: RunPaths) -> Artifact:
    remedy = "make it again with `gaiadask train CONFIG --replace train`, or restore both files of model/ from one backup"
    return Artifact(run.weights, run.card, FORMAT_VERSION, remedy)


def save_model(
    store: Store, run_paths: RunPaths, network: Autoencoder | Flow, transform: Transform, outcome: TrainingOutcome
) -> StarModel:
    """Write a model's two files.

    Args:
        store, run_paths: where.
        network: with the weights to be saved.
        transform: the one that the network was trained with.
        outcome: how it was trained, and how well.

    Returns:
        The model, as `load_model` would read it.

    Raises:
        StoreError: where the store cannot be written; then the card is absent.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    card = ModelCard(
        format_version=FORMAT_VERSION,
        key=outcome.key,
        columns=describe_columns(transform),
        transform=transform.to_json(),
        model=outcome.model,
        training=outcome.training,
        metrics=outcome.metrics.model_copy(update={"latents": ()}),
        latents=outcome.metrics.latents,
        codes=_codes(network, outcome),
        errors=outcome.errors,
        metadata=outcome.metadata,
        versions=_versions(),
    )
    written = _artifact(run_paths).save(store, safetensors.torch.save(weights), card.to_json())
    return StarModel(network, transform, ModelCard.model_validate(written))


def _codes(network: Autoencoder | Flow, outcome: TrainingOutcome) -> tuple[LatentCode, ...]:
    """How each latent is stored; of a network that was not trained its precisions are not known."""
    if not network.shape.bits:
        return ()
    latents = network.shape.latents
    known, errors = outcome.precisions or [0.0] * latents, outcome.errors_by_bits or [()] * latents
    return tuple(LatentCode.of(*each) for each in zip(latent_names(latents), network.latent_bits, known, errors, strict=True))


def load_model(store: Store, run_paths: RunPaths, device: str = "cpu") -> StarModel:
    """Read a run's model.

    Args:
        store, run_paths: where it is.
        device: where its network is to run, as `[cluster] device` names it.

    Raises:
        ConfigurationError: where there is no such device.
        StoreError: naming the file and the remedy, where either file is missing, damaged, of another format version, or was
            not written together with the other.
    """
    place, artifact = torch_device(device), _artifact(run_paths)
    content, written = artifact.load(store)
    try:
        card = ModelCard.model_validate(written)
        transform = Transform.from_json(card.transform)
        network = new_network(transform, card.model, sum(code.bits for code in card.codes))
        network.load_state_dict(safetensors.torch.load(content))
    except (KeyError, TypeError, ValueError, ValidationError, RuntimeError, SafetensorError) as error:
        where = store.uri_of(artifact.card)
        raise StoreError(f"{where} and its weights do not describe one model ({error}): {artifact.remedy}") from error
    return StarModel(network.to(place).eval(), transform, card)


def model_identity(store: Store, run_paths: RunPaths) -> str:
    """The sha256 of a model's weights, by its card: differs where the weights differ. Raises StoreError where there is no card."""
    return _artifact(run_paths).identity(store)


def load_model_cached(store: Store, run_paths: RunPaths, key: str, device: str = "cpu", weights: str = "") -> StarModel:
    """The model of this key, its weights read once a process and device.

    Cached by its weights, not its key: two trainings of one key do not always give the same model (another machine, another
    number of threads).

    Raises:
        KeyMismatchError: where the store has a model of another key, or of other weights than these.
        StoreError, ConfigurationError: as `load_model` does.
    """
    identity = model_identity(store, run_paths)
    model = _read_once(store, run_paths, device, identity)
    if model.key != key:
        raise KeyMismatchError(
            f"{store.uri_of(run_paths.card)} is the model of key {model.key}, expected {key}: it was trained anew meanwhile. "
            "Run the stages from `train` on again"
        )
    if weights and identity != weights:
        raise KeyMismatchError(
            f"{store.uri_of(run_paths.card)} is the model of weights {identity[:16]}…, expected {weights[:16]}…: it was trained anew "
            "meanwhile, or its files were exchanged. Open the run again, or run the stages from `encode` on again"
        )
    return model


def model_is_whole(store: Store, run_paths: RunPaths, key: str) -> bool:
    """Whether both files of the model of this key are there and belong together. Raises StoreError where the store cannot tell."""
    return _artifact(run_paths).is_whole(store, key)


@lru_cache(maxsize=2)  # a run's model, and the one that it is compared with
def _read_once(store: Store, run_paths: RunPaths, device: str, identity: str) -> StarModel:
    return load_model(store, run_paths, device)


def describe_columns(transform: Transform) -> tuple[CardColumn, ...]:
    """The card's columns, in the order of the null mask's bits."""
    kinds = {name: kind_of(transform.release.columns[name], encoding) for name, encoding in transform.encodings.items()}
    columns = [transform.release.columns[name] for name in transform.columns]
    return tuple(
        CardColumn(name=c.name, unit=c.unit, ucd=c.ucd, dtype=str(c.dtype), role=_role(c.name, transform), kind=kinds.get(c.name))
        for c in columns
    )


def _role(name: str, transform: Transform) -> ColumnRole:
    if name in (RA, DEC) and name not in transform.free:
        return "position"
    if name in transform.derived:
        return "derived"
    return "constant" if name in transform.constant else "free"


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("gaiadask", "torch", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
