#!/usr/bin/env python
"""How long training stands still for a checkpoint, beside how long the checkpoint takes to be written.

The state is that of an iresnet18 with momentum (0.2 GB) and as many people's weights as make up the rest. Training is
stood in for by matrix products of some milliseconds, which ask for Python's lock more often than updates do. What the
thread that writes holds up is told from what neighbours on the machine do by the kernel's account of the thread that
trains: time that it neither ran nor waited for a core (Linux's schedstat).
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from benchmark import Spread, parser, report, table
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import save

from facetrain.checkpoints.piece import Piece
from facetrain.checkpoints.plan import ALL, PieceWriter
from facetrain.checkpoints.writer import Writer
from facetrain.config import Config
from facetrain.distributed import World
from facetrain.train import TrainState, build_state

SIZE = 512  # a product of two such matrices takes about 2 ms on one core
EMBEDDING = 512
ABOUT = {"config": {}, "num_classes": 0, "num_images": 0}


@dataclass(frozen=True)
class Saved:
    """One checkpoint: seconds that the call took, that the writing took, and that products were held up meanwhile."""

    call: float
    write: float
    held_up: float


def main() -> None:
    """Measure and report."""
    options = _options()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    sections = []
    for gigabytes in options.gigabytes:
        state = _state(gigabytes, device)
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            sections.append(_measured(state, Path(folder), options.rounds))
        del state
    text = (
        "A checkpoint stalls training while `save` copies the state, and wherever the thread that writes holds up an "
        "update. The aim is less than 5 % of the write's time. `the writing` is a look for numbers that are not "
        "finite, files, fsync, SHA-256, manifest and rename; the first save of a run, which also makes the "
        "buffers, is not counted. `held up` is the time that matrix products in the meantime neither ran nor waited "
        "for a core; `stall` is the call and that, in percent of the writing.\n\n" + "\n\n".join(sections)
    )
    report("Checkpoints: how long training stands still", text, options.out, device)


def _options() -> argparse.Namespace:
    made = parser(str(__doc__).partition("\n")[0], rounds=5)
    made.add_argument("--gigabytes", type=float, nargs="+", default=[0.2, 1.0], help="of the state (default 0.2 and 1)")
    made.add_argument("--folder", type=Path, help="on the disk to measure (default: the one for temporary files)")
    return made.parse_args()


def _state(gigabytes: float, device: torch.device) -> TrainState:
    config = Config.model_validate(
        {"output": "unused", "data": {"path": "unused"}, "model": {"name": "iresnet18", "embedding_size": EMBEDDING}}
    )
    backbone = 8 * 24e6  # weights and momentum, float32
    people = max(16, int((gigabytes * 1e9 - backbone) / (8 * EMBEDDING)))
    state = build_state(config, np.full(people, 2), World(device=device))
    for parameter in state.backbone.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    return state


def _measured(state: TrainState, folder: Path, rounds: int) -> str:
    factor = torch.randn((SIZE, SIZE), device=state.world.device)

    def product() -> None:
        (factor @ factor).sum().item()

    writer = Writer(folder / "ours", state.world, keep=1)

    def ours() -> Callable[[], bool]:
        state.save(ABOUT, writer)
        return lambda: writer._thread is not None and writer._thread.is_alive()

    sides = {"facetrain": ours, "DCP's own safetensors writer": lambda: _stock(writer, state, folder / "stock")}
    taken: dict[str, list[Saved]] = {name: [] for name in sides}
    together = []
    for number in range(rounds + 1):
        for name, side in sides.items():
            saved = _save(side, product)
            taken[name] += [saved] if number else []
        before = time.perf_counter()
        state.step += 1
        state.save(ABOUT, writer)
        problem = writer.wait()
        assert problem is None, problem
        together += [time.perf_counter() - before] if number else []
    total = sum(piece.nbytes for piece in state._pieces().values())
    return f"## {total / 1e9:.2f} GB\n\n{_table(taken, Spread(tuple(together)))}"


def _save(side: Callable[[], Callable[[], bool]], product: Callable[[], None]) -> Saved:
    """Save, and make products until it is written."""
    begin = time.perf_counter()
    goes_on = side()
    called, busy = time.perf_counter(), _busy()
    while goes_on():
        product()
    end = time.perf_counter()
    return Saved(called - begin, end - begin, max(0.0, end - called - (_busy() - busy)))


def _busy() -> float:
    """Seconds that this thread has run or waited for a core."""
    running, waiting, _ = Path("/proc/thread-self/schedstat").read_text().split()
    return (int(running) + int(waiting)) / 1e9


def _stock(writer: Writer, state: TrainState, folder: Path) -> Callable[[], bool]:
    """The same buffers through ``torch.distributed.checkpoint`` as it is, in a thread; no checksums, no manifest."""
    shutil.rmtree(folder, ignore_errors=True)
    pieces = writer._copied(state._pieces())

    def write() -> None:
        flat = {name: Piece(piece.tensor.contiguous(), piece.first, piece.total) for name, piece in pieces.items()}
        storage = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        save({ALL: flat}, storage_writer=storage, planner=PieceWriter(), no_dist=True)

    thread = threading.Thread(target=write)
    thread.start()
    return thread.is_alive


def _table(taken: dict[str, list[Saved]], together: Spread) -> str:
    header = [
        "",
        "save returns after, s",
        "range",
        "the writing, s",
        "range",
        "held up, s",
        "range",
        "stall, %",
        "range",
    ]
    rows = []
    for name, saves in taken.items():
        parts = [Spread(tuple(getattr(one, field) for one in saves)) for field in ("call", "write", "held_up")]
        share = Spread(tuple(100 * (one.call + one.held_up) / one.write for one in saves))
        rows.append([name, *(cell for part in parts for cell in part.cells(3)), *share.cells(2)])
    waited = f"With nothing else to do, waiting for facetrain's checkpoint takes {together.cells(3)[0]} s."
    return f"{table(header, rows)}\n\n{waited}"


if __name__ == "__main__":
    main()
