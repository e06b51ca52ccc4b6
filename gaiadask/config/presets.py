"""The presets: named sets of defaults for [model], [training] and what is encoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from gaiadask.errors import ConfigurationError

ReconstructionLoss = Literal["hyperbolic", "gaussian", "mse", "weighted-mse", "bce"]
LIKELIHOODS: frozenset[ReconstructionLoss] = frozenset({"hyperbolic", "gaussian"})
Activation = Literal["silu", "relu"]
BatchNorm = Literal["none", "running", "batch"]
Schedule = Literal["one-cycle", "constant", "step", "exponential"]
TAIL_FROM = 0.3

# What is encoded of which stars, as `gaiadask init --stars` writes it. The default: the seed's 16 columns, of stars
# with a value in all 25.
STARTS: dict[str, dict[str, Any]] = {
    "seed16": {},
    "seed25": {"model": {"columns": "seed25"}},
    "seed25-nulls": {"model": {"columns": "seed25"}, "selection": {"not_null": ()}},
}
# Beside position; the others follow from these.
FREE_COLUMNS = {"seed16": 9, "seed25": 18, "seed25-nulls": 18}
LATENTS, LATENTS_OF_SEED25 = 8, 16
BITS_A_LATENT, MOST_BITS = 12, 16
BITS_OF_A_FLOW = {"seed16": BITS_A_LATENT * LATENTS, "seed25": BITS_A_LATENT * LATENTS_OF_SEED25}
LEAST_BITS_A_COLUMN = 2

# What a preset of [model] sets where an option is not given; every other option has its field's default. The two of 2020 are
# the systems that this project grew from: the sixteen columns as they are, position and derived columns among them.
_OF_2020: dict[str, Any] = {
    "hidden": (15, 15, 14, 12, 10), "position": "degrees", "derive": False, "error_share": 0.0, "linear_path": False,
    "activation": "relu",
}  # fmt: skip
DEFAULT_PRESET = "vae"
MODEL_PRESETS: dict[str, dict[str, Any]] = {
    "vae": {},
    "flow": {"latents": 0, "hidden": (128, 128)},
    "autoencoder": {},
    "keras-2020": {**_OF_2020, "scaling": "min-max", "loss": "bce"},
    "pytorch-2020": {**_OF_2020, "scaling": "iqr", "loss": "mse", "batch_norm": "batch"},
}
_TRAINING_OF_2020: dict[str, Any] = {"schedule": "step", "gradient_norm": 0.0, "second_moment_decay": 0.999}
TRAINING_PRESETS: dict[str, dict[str, Any]] = {
    "flow": {"learning_rate": 3e-3, "batch_rows": 1024, "gradient_norm": 5.0},
    "keras-2020": {**_TRAINING_OF_2020, "learning_rate": 1e-3, "decay_factor": 0.5, "decay_every": 0.2},
    "pytorch-2020": {**_TRAINING_OF_2020, "learning_rate": 0.1, "decay_factor": 0.1, "decay_every": 0.3},
}
# Of [prior]: a flow is trained on, from weights that are nearly right, with smaller steps and more stars. Its validation loss rises
# while steps grow and falls below what it was when they shrink again: no validation on the way ends it (docs/tried.md).
PRIOR_PRESETS: dict[str, dict[str, Any]] = {
    "flow": {"rows_seen": 6_000_000, "batch_rows": 1024, "learning_rate": 1e-3, "patience": 10}
}
SECTION_PRESETS = {"training": TRAINING_PRESETS, "prior": PRIOR_PRESETS}
"""What presets of [model] set in other sections, by section."""


def set_beside_model(preset: str) -> dict[str, Mapping[str, object]]:
    """What one preset sets in other sections than [model], by section."""
    return {section: presets.get(preset, {}) for section, presets in SECTION_PRESETS.items()}


def latent_bits(model: Mapping[str, object]) -> int:
    """Default of [latent] bits, of the options of [model] that are given."""
    if model.get("preset") == "flow":
        return BITS_OF_A_FLOW.get(str(model.get("columns", "seed16")), 0)
    latents = model.get("latents", model_defaults(model).get("latents", LATENTS))
    is_rounded = model.get("preset", "vae") == "vae" and not model.get("free_bits")
    # Anything else will be refused where [model] is checked.
    return BITS_A_LATENT * latents if is_rounded and isinstance(latents, int) else 0


def start_with_bits(start: str, bits: int) -> dict[str, dict[str, object]]:
    """The options that `gaiadask init --bits` writes: a flow, which gives the budget to the columns that it is worth most in.

    Raises:
        ConfigurationError: for a budget that is too small for the columns, or too large.
    """
    columns = FREE_COLUMNS[start]
    least, most = LEAST_BITS_A_COLUMN * columns, MOST_BITS * columns
    if not least <= bits <= most:
        raise ConfigurationError(
            f"--bits {bits} is too {'small' if bits < least else 'large'} for the {columns} free columns of {start}: expected {least} to "
            f"{most} bits a star, {LEAST_BITS_A_COLUMN} to {MOST_BITS} for each"
        )
    given = STARTS[start]
    return {**given, "model": {**given.get("model", {}), "preset": "flow"}, "latent": {"bits": bits}}


def model_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of [model] options that the given preset, loss and columns change."""
    defaults = dict(MODEL_PRESETS.get(str(values.get("preset", "vae")), {}))
    if values.get("columns") == "seed25" and "latents" not in defaults:
        defaults["latents"] = LATENTS_OF_SEED25
    loss = values.get("loss", defaults.get("loss", "hyperbolic"))
    if loss not in LIKELIHOODS:
        defaults["error_share"] = 0.0
    if loss == "bce":
        defaults["linear_path"] = False
    return defaults
