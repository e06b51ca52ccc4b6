"""Where workers find a run's model, and on which device they run it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gaiadask.model.files import load_model_cached, model_identity
from gaiadask.model.star_model import StarModel
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths


@dataclass(frozen=True)
class ModelSource:
    """A trained model by its place and key; small and picklable.

    Attributes:
        store: of the run.
        run: whose model it is.
        key: that the model must have.
        device: as `[cluster] device` names it.
        weights: sha256 that its weights must have; "" where any will do.
    """

    store: Store
    run: RunPaths
    key: str
    device: str = "cpu"
    weights: str = ""

    @classmethod
    def of(cls, store: Store, run: RunPaths, key: str, device: str = "cpu") -> ModelSource:
        """The model as it is now: one that takes its place is refused, even of the same key. Raises StoreError where there is none."""
        return cls(store, run, key, device, model_identity(store, run))

    def on_cpu(self) -> ModelSource:
        """The same model on the CPU: for a client, whose machine may lack the workers' device."""
        return replace(self, device="cpu")

    def load(self) -> StarModel:
        """The model on its device, its weights read once a process.

        Raises:
            KeyMismatchError: where the store has a model of another key or other weights.
            StoreError: where it cannot be read.
        """
        return load_model_cached(self.store, self.run, self.key, self.device, self.weights)
