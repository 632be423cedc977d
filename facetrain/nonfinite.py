"""Losses and gradients that are not finite: found, written down with their images, and the run stopped or gone on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from facetrain.atomic import replacing
from facetrain.config import Config
from facetrain.data.dataset import Images
from facetrain.data.sampler import batch_indices
from facetrain.errors import RunError
from facetrain.train import Update

FILE = "nonfinite.json"


class _Seen(NamedTuple):
    step: int
    numbers: Tensor  # (2,) float64 on the device: loss, norm of the gradient


class Interval(NamedTuple):
    """A stretch of updates, in means over those that were made; NaN if all were left out."""

    steps: int
    loss: float
    gradient_norm: float
    warnings: list[str]


class Guard:
    """Keeps the numbers of an interval's updates on the device, and judges them when the host waits for it anyway.

    Attributes:
        skipped: the updates of this run that were left out, by step; a checkpoint's manifest carries them on.
    """

    def __init__(self, config: Config, images: Images, good: Callable[[], str], writes: bool) -> None:
        """Begin with an empty interval.

        Args:
            config: the recipe.
            images: the training set.
            good: says which checkpoint can be gone on from.
            writes: whether this rank writes the run's files.
        """
        self.config, self.images, self.good, self.writes = config, images, good, writes
        self.skipped: list[int] = []
        self._seen: list[_Seen] = []

    def note(self, update: Update, step: int) -> None:
        """Remember the update that led to ``step``."""
        self._seen.append(_Seen(step, torch.stack([update.loss, update.gradient_norm])))

    def alarmed(self) -> bool:
        """Whether the last update is not finite; on a GPU the host would have to wait for the answer."""
        return not bool(self._seen[-1].numbers.isfinite().all())

    def judge(self) -> Interval:
        """Sum up the interval and begin the next; the same on every rank.

        Raises:
            RunError: an update is not finite and the recipe says to stop, or too many were left out.
        """
        found = torch.stack([seen.numbers for seen in self._seen]).cpu()  # the one wait for the device
        steps = [seen.step for seen in self._seen]
        self._seen = []
        finite = found.isfinite().all(1)
        warnings = [self._one(steps[i], *found[i].tolist()) for i in (~finite).nonzero()[:, 0].tolist()]
        loss, norm = (found[finite].sum(0) / finite.sum()).tolist()
        return Interval(len(steps), loss, norm, warnings)

    def _one(self, step: int, loss: float, norm: float) -> str:
        """Write one down; what to tell about it, or the end of the run."""
        output, policy = self.config.output, self.config.train
        self._write_down(step, loss, norm)
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
        where = f"{what} at step {step}, images in {output / FILE}"
        if policy.nonfinite == "stop":
            raise RunError(f"{where}; {self.good()}; try a lower optim.lr, optim.clip_norm or warm-up")
        self.skipped.append(step)
        if len(self.skipped) > policy.max_skipped:
            raise RunError(f"{where}; more than train.max_skipped {policy.max_skipped} were left out; {self.good()}")
        return f"warning: {where}; update left out ({len(self.skipped)} of {policy.max_skipped} allowed)"

    def _write_down(self, step: int, loss: float, norm: float) -> None:
        """Append to the run's list; which images they are follows from the step alone."""
        if not self.writes:
            return
        train, file = self.config.train, self.config.output / FILE
        epoch, images = batch_indices(len(self.images), train.batch_size, self.config.seed, step - 1)
        entry = {
            "step": step,
            "epoch": epoch,
            "loss": str(loss),
            "gradient_norm": str(norm),
            "images": images.tolist(),
            "people": self.images.labels[images].tolist(),
            "where": [self.images.where(i) for i in images.tolist()],
        }
        before = _entries(file.read_text()) if file.exists() else []
        kept = [other for other in before if other["step"] < step]  # a resumed run makes later ones again
        with suppress(OSError), replacing(file) as growing:  # a full disk must not hide the matter itself
            growing.write_text(json.dumps([*kept, entry], indent=1))


def _entries(text: str) -> list[dict]:
    try:
        entries = json.loads(text)
    except ValueError:
        return []
    return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("step"), int)]
