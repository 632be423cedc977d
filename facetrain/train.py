"""One update: batches -> embeddings -> sharded logits -> loss -> class statistics -> step; and the state it changes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from facetrain import checkpoint
from facetrain.checkpoint_files import last_good
from facetrain.checkpoint_shards import Shard
from facetrain.classifier.partial_fc import PartialFC
from facetrain.config import Config
from facetrain.data.loader import Batch
from facetrain.distributed import World, gather_embeddings
from facetrain.errors import RunError
from facetrain.keyed import bits, text_key
from facetrain.longtail.leap import Leap
from facetrain.models import build_backbone, normalise
from facetrain.optim import build_optimizer, clip_gradients

_BACKBONE = text_key("backbone weights")
_DROPOUT = text_key("dropout")


@dataclass
class TrainState:
    """Everything an update changes, and where it happens.

    Attributes:
        backbone: the module whose state is saved.
        parallel: the same, averaging gradients over ranks (and compiled, where the recipe says so).
        optimizer: the backbone's.
        classifier: this rank's shard, with its own optimiser.
        leap: this rank's class statistics and the feature clouds that follow from them.
        step: updates made so far.
    """

    config: Config
    world: World
    backbone: nn.Module
    parallel: nn.Module
    optimizer: torch.optim.Optimizer
    classifier: PartialFC
    leap: Leap
    step: int = 0

    def save(self, about: dict[str, object]) -> Path:
        """Write a checkpoint, all ranks together.

        Running statistics must have been averaged over the ranks; ``about`` is what the manifest says besides.

        Raises:
            RunError: on every rank, where any rank's state is not finite; nothing is written.
        """
        shards = self._shards()
        tensors = [*self.backbone.state_dict().values(), *(t for s in shards.values() for t in s.tensors.values())]
        sums = [tensor.sum(dtype=torch.float64) for tensor in tensors if tensor.is_floating_point()]
        finite = torch.stack(sums).isfinite().all()
        if self.world.largest(int(not finite)):
            good = last_good(self.config.output / "checkpoints")
            raise RunError(f"the weights are not finite after step {self.step}; {good}; try a lower optim.lr")
        return checkpoint.save(
            self.config.output / "checkpoints",
            self.step,
            backbone=self.backbone,
            model=self.config.model,
            optimizer=self.optimizer,
            shards=list(shards.values()),
            about=about,
            world=self.world,
            keep=self.config.train.keep_checkpoints,
        )

    def load(self, path: Path) -> None:
        """Continue from a checkpoint of any number of ranks."""
        self.step, loose = checkpoint.load_training(
            path, backbone=self.backbone, optimizer=self.optimizer, shards=self._shards()
        )
        if self.leap.active:
            self.leap.restored(loose["pending"], loose["pending_class"].numpy())

    def _shards(self) -> dict[str, Shard]:
        """What ranks hold by class, under the key of the recipe that decides what it is."""
        shards = {"optim.name": Shard("classifier", self.classifier.classes, self.classifier.sharded_state())}
        if self.leap.active:
            shards["leap"] = self.leap.shard()
        return shards


def build_state(config: Config, class_counts: NDArray[np.int64], world: World, steps_per_epoch: int = 1) -> TrainState:
    """A fresh state; the initial weights depend on the seed alone, not on the number of ranks.

    Args:
        config: the recipe.
        class_counts: (C,) training images of each class.
        world: the ranks.
        steps_per_epoch: what turns ``leap.start_epoch`` into a step.
    """
    torch.manual_seed(_torch_seed(config.seed, _BACKBONE))
    backbone = build_backbone(config.model).to(world.device)
    parallel = world.data_parallel(backbone)
    if world.size > 1:
        _settle(parallel, config.model.input_size, world.device)
    size = config.model.embedding_size
    classifier = PartialFC(len(class_counts), size, config.classifier, config.optim, world, config.seed)
    chunk = min(config.classifier.chunk, len(classifier.classes))
    leap = Leap(config.leap, class_counts, size, world, config.seed, config.cloud_start_step(steps_per_epoch), chunk)
    return TrainState(
        config=config,
        world=world,
        backbone=backbone,
        parallel=torch.compile(parallel) if config.model.compile else parallel,  # type: ignore[arg-type]
        optimizer=build_optimizer(backbone, config.optim),
        classifier=classifier,
        leap=leap,
    )


def _settle(parallel: nn.Module, input_size: int, device: torch.device) -> None:
    """Two passes over black images, of which nothing stays but DDP's final grouping of the gradients.

    DDP groups them anew at the second forward pass. Sums over three and more ranks depend on the grouping in their last
    bit, and a resumed run would make its first update with another than the undisturbed run.
    """
    before = [buffer.clone() for buffer in parallel.buffers()]
    for _ in range(2):
        black = torch.zeros((2, input_size, input_size, 3), dtype=torch.uint8, device=device)
        parallel(normalise(black)).sum().backward()
    parallel.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, value in zip(parallel.buffers(), before, strict=True):
            buffer.copy_(value)


def train_step(state: TrainState, batches: Sequence[Batch], lr: float) -> Tensor:
    """One update from the micro-batches of a global batch; the mean loss of all ranks, a float64 scalar on the device.

    Shapes: B own images and G images of all ranks in a micro-batch, D embedding size.
    """
    world, classifier, leap = state.world, state.classifier, state.leap
    state.optimizer.zero_grad(set_to_none=True)
    torch.manual_seed(_torch_seed(state.config.seed, _DROPOUT, state.step, world.rank))  # dropout
    classifier.begin(np.concatenate([batch.labels for batch in batches]), state.step)
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    first_row = 0
    for number, batch in enumerate(batches, start=1):
        images = batch.images.to(world.device, non_blocking=True)  # (B, H, W, 3) uint8
        with _accumulating(state, last=number == len(batches)):
            with _precision(state):
                embeddings = state.parallel(normalise(images))  # (B, D)
            embeddings = embeddings.to(classifier.weight.dtype)
            everyone = gather_embeddings(embeddings, world, len(batch.labels))  # (G, D)
            cloud = leap.cloud(batch.labels, state.step, first_row)
            loss = classifier.loss(everyone, batch.labels, cloud) / len(batches)  # scalar, equal on every rank
            loss.backward()
        leap.observe(everyone, batch.labels)
        first_row += len(batch.labels)
        total += loss.detach()
    _clip(state)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.step()
    classifier.step(lr)
    state.step += 1
    leap.end_step(state.step)
    return total


def _accumulating(state: TrainState, last: bool) -> contextlib.AbstractContextManager[None]:
    """Gradients of all but the last micro-batch are averaged over ranks together with the last one's."""
    no_sync = getattr(state.parallel, "no_sync", None)
    return contextlib.nullcontext() if last or no_sync is None else no_sync()


def _precision(state: TrainState) -> contextlib.AbstractContextManager[None]:
    enabled = state.config.train.precision == "bf16"
    return torch.autocast(state.world.device.type, dtype=torch.bfloat16, enabled=enabled)  # type: ignore[return-value]


def _clip(state: TrainState) -> None:
    optim = state.config.optim
    if optim.clip_norm is not None:
        sharded = [state.classifier.rows] if optim.clip_scope == "all" else []
        clip_gradients(state.backbone.parameters(), sharded, optim.clip_norm, state.world)


def _torch_seed(*key: int) -> int:
    return int(bits(*key) >> np.uint64(1))
