"""A run's checkpoints: what their manifests say, and what becomes of one that cannot be written."""

from __future__ import annotations

from typing import Any

from facetrain.checkpoints.files import folder_name, last_good
from facetrain.checkpoints.writer import Writer
from facetrain.config import Config
from facetrain.data.dataset import Images
from facetrain.distributed import World
from facetrain.errors import RunError
from facetrain.monitor import Monitor
from facetrain.optim import learning_rate
from facetrain.provenance import versions
from facetrain.train import TrainState

_WRITING = 1800.0  # seconds beyond the usual timeout that may pass until a checkpoint is on the disk


class Saver:
    """Saves a run's state behind its training; the same calls on every rank.

    Attributes:
        about: what a manifest says besides the state and the versions: recipe, counts, ``best`` (metric, value and step
            of the best verification so far), ``skipped`` and ``damaged_images``.
    """

    def __init__(self, config: Config, images: Images, world: World, total_steps: int, steps_per_epoch: int) -> None:
        """Clear away what a killed run left half written."""
        self.config, self.world = config, world
        self._total_steps, self._per_epoch = total_steps, steps_per_epoch
        folder, train = config.output / "checkpoints", config.train
        self._writer = Writer(folder, world, train.keep_checkpoints, train.timeout + _WRITING)
        self._best_before: dict[str, Any] | None = None
        self.about: dict[str, Any] = {
            "config": config.model_dump(mode="json"),
            "num_classes": images.num_classes,
            "num_images": len(images),
            "best": None,
            "skipped": [],
            "damaged_images": [],
        }

    def restore(self, manifest: dict[str, Any]) -> None:
        """Go on from a checkpoint's manifest."""
        self.about |= {key: manifest[key] for key in ("best", "skipped", "damaged_images")}

    def better(self, accuracy: float, step: int) -> bool:
        """Whether a mean accuracy is the run's best so far; if so, manifests say it from now on."""
        best = self.about["best"]
        if not self.config.train.keep_best or (best is not None and accuracy <= best["value"]):
            return False
        self._best_before = best
        self.about["best"] = {"metric": "mean accuracy", "value": accuracy, "step": step}
        return True

    def save(self, state: TrainState, monitor: Monitor) -> None:
        """Begin to write a checkpoint; training goes on meanwhile."""
        config, step = self.config, state.step
        self.world.pulse.beat(phase="saving", allowed=_WRITING)
        last = min(step, self._total_steps - 1)
        lr = learning_rate(last, self._total_steps, self._per_epoch, config.optim.lr, config.schedule)
        position = {
            "epoch": step / self._per_epoch,
            "images": step * config.train.batch_size,
            "lr": lr,
            "seed": config.seed,
        }
        self._writer.settle()
        self.look(monitor)  # before the manifest names the best
        # The position follows from the step and is not read again: it is there for people.
        made_with = versions() if self.world.rank == 0 else {}  # which writes the manifest
        state.save({**self.about, "versions": made_with, "position": position}, self._writer)
        monitor.pause()

    def look(self, monitor: Monitor) -> None:
        """Tell of a checkpoint that could not be written; RunError where the recipe wants the run to stop then."""
        if problem := self._writer.problem():
            best = self.about["best"]
            if best and f"{folder_name(best['step'])} was not written" in problem:
                self.about["best"] = self._best_before  # the best that there is
            if self.config.train.on_save_error == "stop":
                raise RunError(problem)
            monitor.say(f"warning: {problem}; training goes on")

    def finish(self) -> None:
        """Wait until the last checkpoint is on the disk; RunError where it is not."""
        self.world.pulse.beat(phase="saving", allowed=_WRITING)
        if problem := self._writer.wait():
            raise RunError(problem)

    def last_good(self) -> str:
        """What a run that breaks down now can go on from, in words; one that is being written is waited for."""
        self._writer.close()
        return last_good(self.config.output / "checkpoints")

    def close(self) -> None:
        """Leave a write under way its time, whatever ended the run."""
        self._writer.close()
