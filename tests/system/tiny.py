"""A training set and a recipe so small that a whole run of the real trainer takes seconds."""

from pathlib import Path
from typing import Any

import numpy as np

from facetrain import keyed
from facetrain.config import Config
from facetrain.data.images import encode_jpeg
from facetrain.data.record_writer import RecordWriter

SIDE = 16


def write_tiny(path: Path, people: int = 13, images: int = 64) -> Path:
    """A .rec of ``images`` blurred patterns, one a person, with noise; person 0 has most, the last ones two or three.

    Returns:
        ``path``.
    """
    counts = np.maximum(np.minimum(2, images // people), images * 0.5 ** np.arange(1, people + 1) // 1).astype(int)
    counts[0] += images - counts.sum()
    with RecordWriter(path, SIDE) as writer:
        for person, count in enumerate(counts):
            pattern = keyed.uniform(1, person, np.arange(4 * 4 * 3)).reshape(4, 4, 3).repeat(4, 0).repeat(4, 1)
            for photo in range(count):
                noise = keyed.uniform(2, person, photo, np.arange(pattern.size)).reshape(pattern.shape)
                writer.write(person, encode_jpeg((200 * pattern + 50 * noise).astype(np.uint8)))
    return path


def tiny_recipe(data: Path, output: Path, **sections: dict[str, Any]) -> Config:
    """48 updates in 12 epochs of :func:`write_tiny`'s 64 images, feature clouds from the second epoch on.

    LEAP synchronises every 3 updates and a checkpoint is due every 2, so that most of them hold rows not yet counted.

    Args:
        data: the .rec.
        output: the run's folder.
        sections: keys laid over those here, by section; those of ``leap`` replace them.
    """
    recipe: dict[str, dict[str, Any]] = {
        "data": {"path": data, "workers": 0, "augment": {"crop": 0.5, "color": 0.5}},
        "model": {"width": 4, "input_size": SIDE, "embedding_size": 8, "dropout": 0.1},
        "optim": {"lr": 0.02},
        "leap": {"variant": "vanilla", "head_threshold": 4, "start_epoch": 1, "sync_interval": 3},
        "train": {"epochs": 12, "batch_size": 16, "log_every": 1, "checkpoint_every": 2, "threads": 1, "timeout": 60},
    }
    for name, keys in sections.items():
        recipe[name] = keys if name == "leap" else recipe.get(name, {}) | keys
    return Config.model_validate({"output": output, "device": "cpu", **recipe})
