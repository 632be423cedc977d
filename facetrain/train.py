"""One update: batches -> embeddings -> sharded logits -> loss -> class statistics -> step; and the state it changes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from facetrain.checkpoints.files import read_manifest
from facetrain.checkpoints.piece import Piece
from facetrain.checkpoints.state import backbone_pieces, make_room, optimizer_pieces
from facetrain.checkpoints.storage import read, stored
from facetrain.checkpoints.writer import Writer
from facetrain.classifier.partial_fc import PartialFC
from facetrain.config import Config
from facetrain.data.loader import Batch
from facetrain.distributed import World, gather_embeddings
from facetrain.errors import InputError
from facetrain.keyed import bits, text_key
from facetrain.longtail.leap import Leap
from facetrain.models import build_backbone, normalise
from facetrain.optim import build_optimizer, clip_gradients, gradient_norm

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

    def save(self, about: dict[str, Any], writer: Writer) -> Path:
        """Begin to write a checkpoint, all ranks together; the folder that it will have when it is written.

        Running statistics must have been averaged over the ranks.

        Args:
            about: what the manifest says besides; the checkpoint of the step of its ``best`` stays.
            writer: of the run's checkpoints.

        Raises:
            RunError: on every rank, where any rank's state was not finite at the save before.
        """
        best = about.get("best") or {}
        return writer.save(self.step, self._pieces(), about, best.get("step"))

    def load(self, path: Path) -> None:
        """Continue from a checkpoint of any number of ranks, all ranks together.

        Raises:
            InputError: on every rank, where on any it does not fit the recipe or the data, or is damaged.
        """
        pieces: dict[str, Piece] = {}
        problem = None
        try:
            manifest = read_manifest(path)
            make_room(path, stored(path), self.backbone, self.optimizer)
            pieces = self._pieces(pending=manifest["rows"].get("leap.pending", 0))
            read(path, pieces)
            self.step = int(manifest["step"])
        except InputError as error:
            problem = error
        for said in self.world.gather_objects(problem):
            if said is not None:
                raise said
        if self.leap.active:
            self.leap.restored(pieces["leap.pending"].tensor, pieces["leap.pending_class"].tensor.numpy())

    def _pieces(self, pending: int | None = None) -> dict[str, Piece]:
        """All of the state under its full names; ``pending`` as of :meth:`Leap.shard`."""
        classes = self.classifier.classes.start, self.classifier.num_classes
        spread = {f"classifier.{name}": Piece(rows, *classes) for name, rows in self.classifier.sharded_state().items()}
        if self.leap.active:
            spread |= {f"leap.{name}": piece for name, piece in self.leap.shard(pending).items()}
        return {**backbone_pieces(self.backbone), **optimizer_pieces(self.backbone, self.optimizer), **spread}


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
    chunk = min(classifier.spec.chunk, len(classifier.classes))
    leap = Leap(config.leap, class_counts, size, world, config.seed, config.cloud_start_step(steps_per_epoch), chunk)
    return TrainState(
        config=config,
        world=world,
        backbone=backbone,
        parallel=_compiled(parallel, config, world) if config.model.compile else parallel,
        optimizer=build_optimizer(backbone, config.optim),
        classifier=classifier,
        leap=leap,
    )


def _compiled(parallel: nn.Module, config: Config, world: World) -> nn.Module:
    """A graph's outputs lie in the same memory at every step: nothing may need the embeddings of a former one."""
    graph = config.model.cuda_graph and world.device.type == "cuda"
    compiled: nn.Module = torch.compile(parallel, mode="reduce-overhead" if graph else "default")  # type: ignore[assignment]
    return compiled


def _settle(parallel: nn.Module, input_size: int, device: torch.device) -> None:
    """Two passes over black images, of which nothing stays but DDP's final grouping of the gradients.

    DDP groups them anew at the second forward pass. Sums over three and more ranks depend on the grouping in their last
    bit, and a resumed run would make its first update with another than the undisturbed run.
    """
    before = _buffers(parallel)
    for _ in range(2):
        black = torch.zeros((2, input_size, input_size, 3), dtype=torch.uint8, device=device)
        parallel(normalise(black)).sum().backward()
    parallel.zero_grad(set_to_none=True)
    _put_back(parallel, before)


def _buffers(module: nn.Module) -> list[Tensor]:
    """A copy of the running statistics."""
    return [buffer.clone() for buffer in module.buffers()]


@torch.no_grad()
def _put_back(module: nn.Module, before: list[Tensor]) -> None:
    for buffer, value in zip(module.buffers(), before, strict=True):
        buffer.copy_(value)


class Update(NamedTuple):
    """What came of one update, on every rank the same.

    Attributes:
        loss: float64 scalar on the device, the mean of all images of all ranks.
        gradient_norm: float64 scalar on the device, before clipping: of the backbone, and of the classifier's rows
            where the recipe's ``clip_scope`` or ``nonfinite: skip`` asks for theirs too.
    """

    loss: Tensor
    gradient_norm: Tensor


def train_step(state: TrainState, batches: Sequence[Batch], lr: float) -> Update:
    """One update from the micro-batches of a global batch.

    With ``train.nonfinite: skip`` an update whose loss or gradient is not finite changes nothing but the step's number;
    the host has to wait for the device to know. Otherwise it does not wait, and the caller looks at the numbers later.

    Shapes: B own images and G images of all ranks in a micro-batch, D embedding size.
    """
    world, classifier, leap = state.world, state.classifier, state.leap
    pulse = world.pulse
    before = _buffers(state.backbone) if state.config.train.nonfinite == "skip" else None
    state.optimizer.zero_grad(set_to_none=True)
    torch.manual_seed(_torch_seed(state.config.seed, _DROPOUT, state.step, world.rank))  # dropout
    at_once = len(batches) == 1 and not _norm_of_everything(state)
    classifier.begin(np.concatenate([batch.labels for batch in batches]), state.step, lr if at_once else None)
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    seen: list[tuple[Tensor, NDArray[np.int64]]] = []  # embeddings of all ranks and their labels
    first_row = 0
    for number, batch in enumerate(batches, start=1):
        pulse.beat(phase="backbone")
        images = batch.images.to(world.device, non_blocking=True)  # (B, H, W, 3) uint8
        with _accumulating(state, last=number == len(batches)):
            with _precision(state):
                embeddings = state.parallel(normalise(images))  # (B, D)
            pulse.beat(phase="gathering embeddings")
            embeddings = embeddings.to(classifier.weight.dtype)
            everyone = gather_embeddings(embeddings, world, len(batch.labels))  # (G, D)
            pulse.beat(phase="LEAP")
            cloud = leap.cloud(batch.labels, state.step, first_row)
            pulse.beat(phase="logits")
            loss = classifier.loss(everyone, batch.labels, cloud) / len(batches)  # scalar, equal on every rank
            pulse.beat(phase="backward")
            loss.backward()
        seen.append((everyone.detach(), batch.labels))
        first_row += len(batch.labels)
        total += loss.detach()
    pulse.beat(phase="update")
    norm = _gradient_norm(state)
    if before is None or bool((total + norm).isfinite()):
        _apply(state, norm, lr)
        pulse.beat(phase="LEAP")
        for embedded, labels in seen:
            leap.observe(embedded, labels)
    else:  # nothing of it stays
        _put_back(state.backbone, before)
        state.optimizer.zero_grad(set_to_none=True)
        classifier.rows.grad = None
    state.step += 1
    leap.end_step(state.step)
    return Update(total, norm)


def _gradient_norm(state: TrainState) -> Tensor:
    """Equal on every rank, and not finite wherever any rank's gradient is not, for gradients flow through all ranks."""
    sharded = [state.classifier.rows] if _norm_of_everything(state) else []
    return gradient_norm(state.backbone.parameters(), sharded, state.world)


def _norm_of_everything(state: TrainState) -> bool:
    """Whether the classifier's gradient must be known before it is applied: to be scaled with the rest, or dropped."""
    optim = state.config.optim
    return state.config.train.nonfinite == "skip" or (optim.clip_norm is not None and optim.clip_scope == "all")


def _apply(state: TrainState, norm: Tensor, lr: float) -> None:
    """Clip and step."""
    optim = state.config.optim
    if optim.clip_norm is not None:
        scaled: list[Tensor] = [*state.backbone.parameters()]
        if optim.clip_scope == "all":
            scaled.append(state.classifier.rows)
        elif state.config.train.nonfinite == "skip":  # then the norm is of more than is to be clipped
            norm = gradient_norm(scaled, [], state.world)
        clip_gradients(scaled, optim.clip_norm, norm)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.step()
    state.classifier.step(lr)


def _accumulating(state: TrainState, last: bool) -> contextlib.AbstractContextManager[None]:
    """Gradients of all but the last micro-batch are averaged over ranks together with the last one's."""
    no_sync = getattr(state.parallel, "no_sync", None)
    return contextlib.nullcontext() if last or no_sync is None else no_sync()


def _precision(state: TrainState) -> contextlib.AbstractContextManager[None]:
    enabled = state.config.train.precision == "bf16"
    return torch.autocast(state.world.device.type, dtype=torch.bfloat16, enabled=enabled)  # type: ignore[return-value]


def _torch_seed(*key: int) -> int:
    return int(bits(*key) >> np.uint64(1))
