"""The network, its losses and its files: tensors in, tensors out."""

from gaiadask.model.artifact import StarModel, load_model, save_model
from gaiadask.model.networks import Autoencoder

__all__ = ["Autoencoder", "StarModel", "load_model", "save_model"]
