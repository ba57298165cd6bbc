"""The adapters of a run: each is trained or taken from the cache, then loaded, on first use."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from engram_bench import backends
from engram_bench.backends.base import Adapter, Backend, Progress
from engram_bench.data.training import TrainingSet, training_set
from engram_bench.options import Settings
from engram_bench.run import metadata
from engram_bench.run.readers import Facts
from engram_bench.run.recorder import Recorder
from engram_bench.store import adapters
from engram_bench.store.models import Model
from engram_bench.variants import Variant
from engram_bench.variants.kinds import KINDS


class TrainedAdapters:
    """Adapters by variant and training seed.

    Args:
        settings: options of the run.
        model: the model to train adapters for.
        backend: that model, loaded.
        recorder: receives a record of each adapter.
        progress: returns the callable that a variant's training reports progress to.
        run_id: returns the run's id; an adapter trained by any process of this run counts as new, not as cached.

    Attributes:
        data: what every trained variant is trained on, unless its file names other questions.
    """

    def __init__(
        self,
        settings: Settings,
        model: Model,
        backend: Backend,
        recorder: Recorder,
        progress: Callable[[Variant], Progress],
        run_id: Callable[[], str],
    ) -> None:
        self._settings, self._model, self._backend = settings, model, backend
        self._recorder, self._progress, self._run_id = recorder, progress, run_id
        self.data = training_set(settings.patterns, settings.training)
        self._sets = {settings.training: self.data}
        self._found: dict[tuple[str, int], adapters.Trained] = {}
        self._loaded: dict[tuple[str, int], Adapter] = {}

    def adapter(self, variant: Variant, seed: int) -> Adapter | None:
        """The adapter of a seed, trained if it is not cached; None for a variant that trains nothing."""
        if variant.config is None:
            size = Facts(self._settings.patterns).size if KINDS[variant.kind].keeps_facts else None
            self._recorder.add("variant", metadata.untrained(variant, size))
            return None
        key = (variant.name, seed)
        if key not in self._loaded:
            trainer = self._trainer(variant)
            found = self._found[key] = adapters.ensure(
                trainer,
                self._model,
                variant,
                self._data(variant),
                seed,
                run_id=self._run_id(),
                retrain=self._settings.retrain,
                progress=self._progress(variant),
            )
            loaded = self._loaded[key] = self._backend.load_adapter(variant, found.folder)
            self._recorder.add("variant", metadata.trained(variant, found, seed, trainer, loaded.parameter_count()))
        return self._loaded[key]

    def trained(self, variant: Variant, seed: int) -> adapters.Trained:
        """Folder and training record of the adapter of a seed."""
        self.adapter(variant, seed)
        return self._found[variant.name, seed]

    def is_cached(self, variant: Variant, seed: int) -> bool:
        """Whether the adapter of a seed is cached, or the variant trains nothing."""
        folder = self.folder(variant, seed)
        return folder is None or folder.is_dir()

    def folder(self, variant: Variant, seed: int) -> Path | None:
        """The adapter's folder in the cache; None for a variant that trains nothing."""
        if variant.config is None:
            return None
        trainer = self._trainer(variant)
        return adapters.folder_of(trainer, self._model, variant, self._data(variant), seed)

    def _data(self, variant: Variant) -> TrainingSet:
        kind = variant.questions or self.data.kind
        if kind not in self._sets:
            self._sets[kind] = training_set(self._settings.patterns, kind)
        return self._sets[kind]

    def _trainer(self, variant: Variant) -> Backend:
        """The backend that trains a variant.

        Without a GPU, MLX trains slowly: torch trains instead if the profile allows it and the adapter is portable.
        """
        slow = (self._backend.name, self._backend.device) == ("mlx", "cpu")
        return self._torch if slow and self._settings.plan.borrows and KINDS[variant.kind].portable else self._backend

    @cached_property
    def _torch(self) -> Backend:
        return backends.find("cpu").load(self._model.folder)
