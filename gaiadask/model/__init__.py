"""The network, its losses and its files: tensors in, tensors out."""

from gaiadask.model.files import load_model, save_model
from gaiadask.model.networks import Autoencoder
from gaiadask.model.star_model import StarModel

__all__ = ["Autoencoder", "StarModel", "load_model", "save_model"]
