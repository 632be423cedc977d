"""Training states with feature clouds on a toy backbone, in float64, for what must survive saving."""

from pathlib import Path

import numpy as np
import torch
from test_train_ranks import GLOBAL, D, Toy, _config, _micro_batches

from facetrain.checkpoints.writer import Writer
from facetrain.classifier.partial_fc import PartialFC
from facetrain.data.loader import Batch
from facetrain.longtail.leap import Leap
from facetrain.train import TrainState, train_step

CLASSES, SAVED_AFTER = 13, 8
"""Every third step synchronises: after eight, the rows of two are pending."""
COUNTS = 2 + np.arange(CLASSES) % 5
ABOUT = {"config": {}, "num_classes": CLASSES, "num_images": 100}


def train_state(world, leap, output, counts=COUNTS):
    """A fresh state; ``leap`` is that section of the recipe, or None."""
    config = _config("arcface", 0.5, 2, leap=leap).model_copy(update={"output": output})
    backbone = Toy()
    return TrainState(
        config,
        world,
        backbone,
        world.data_parallel(backbone),
        torch.optim.SGD(backbone.parameters(), 0.1, 0.9),
        PartialFC(len(counts), D, config.classifier, config.optim, world, 0, torch.float64),
        Leap(config.leap, counts, D, world, 0, 0, 3, torch.float64),
    )


def advance(state, stop):
    """Updates up to a step; their losses."""
    losses = []
    while state.step < stop:
        own = state.world.rows_of(GLOBAL)
        micros = _micro_batches(state.step, state.config.train.accumulation, state.classifier.num_classes)
        batches = [Batch(torch.from_numpy(images[own.start : own.stop]), labels) for images, labels in micros]
        losses.append(train_step(state, batches, 0.1).loss.item())
    return losses


def saved_state(state, about=None) -> Path:
    """Write a checkpoint and wait for it; its folder."""
    writer = Writer(state.config.output / "checkpoints", state.world, state.config.train.keep_checkpoints, timeout=60)
    path = state.save(about or ABOUT, writer)
    assert writer.wait() is None
    return path
