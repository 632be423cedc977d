"""Checkpoints written while training goes on."""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facetrain.checkpoints.backbones import PREFIX, content_hash
from facetrain.checkpoints.files import commit, folder_name, growing_name, last_good, prune, tidy
from facetrain.checkpoints.piece import Piece
from facetrain.checkpoints.storage import Entries, write
from facetrain.distributed import World, background_group
from facetrain.errors import RunError


class Writer:
    """Writes a run's checkpoints, one at a time, in a thread; the same calls on every rank, in its main thread.

    Saving copies the state, which takes as long as the memory's speed asks for; the rest happens behind training. A
    write that fails removes what it made and leaves older checkpoints as they are. When a rank dies meanwhile, the
    writes of the others fail at once or after ``timeout``; their threads keep no process alive.
    """

    def __init__(self, folder: Path, world: World, keep: int, timeout: float = 600.0) -> None:
        """Clear away what earlier writes that were killed left under ``folder``.

        Args:
            folder: where checkpoints lie; the run has it to itself.
            world: the ranks.
            keep: how many of the newest stay.
            timeout: seconds that ranks wait for each other's files.
        """
        self.folder, self.world, self.keep = folder, world, keep
        self._group = background_group(world, timeout)
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._failure: str | RunError | None = None  # of this rank's last write
        self._untold: str | None = None
        if world.rank == 0:
            tidy(folder)
        world.barrier()

    def save(self, step: int, state: dict[str, Piece], about: dict[str, Any], best: int | None = None) -> Path:
        """Copy the state and begin to write it as the checkpoint of ``step``, after the previous write has ended.

        Args:
            step: updates made so far.
            state: full name, ``group.name``, -> this rank's piece; the same names on all ranks.
            about: what the manifest says besides.
            best: step of the checkpoint that stays whatever its age.

        Returns:
            The folder that the checkpoint will have when it is written.

        Raises:
            RunError: as :meth:`wait`, of the write before.
        """
        self.settle()
        final = self.folder / folder_name(step)
        held = self._copied(state)
        rows = {name: piece.total for name, piece in state.items() if piece.total is not None}
        manifest = {"step": step, "ranks": self.world.size, **about, "rows": rows}
        self._failure = None
        self._thread = threading.Thread(target=self._write, args=(final, held, manifest, best), daemon=True)
        self._thread.start()
        return final

    def problem(self) -> str | None:
        """Why the last write failed, told once; None while it goes on and after one that succeeded."""
        if self._thread is not None and not self.world.largest(int(self._thread.is_alive())):
            return self.wait()
        return self._told()

    def settle(self) -> None:
        """Wait for the write under way; :meth:`problem` then tells how it ended."""
        self._untold = self.wait()

    def wait(self) -> str | None:
        """:meth:`problem` of the last write after its end.

        Raises:
            RunError: on every rank, where any rank's state was not finite; nothing was written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            failures = [failure for failure in self.world.gather_objects(self._failure) if failure]
            if failures and isinstance(failures[0], RunError):
                raise failures[0]
            self._untold = failures[0] if failures else self._untold
        return self._told()

    def close(self, patience: float = 30.0) -> None:
        """Give a write that goes on its time, asking no other rank: for the way out of a run that broke down."""
        if self._thread is not None:
            self._thread.join(patience)

    def _told(self) -> str | None:
        told, self._untold = self._untold, None
        return told

    def _copied(self, state: dict[str, Piece]) -> dict[str, Piece]:
        """The state in this process's memory, in buffers that stay from save to save."""
        held = {}
        for name, piece in state.items():
            tensor = piece.tensor.detach()
            if piece.total is not None or self.world.rank == 0:  # the others need no more than type and shape
                buffer = self._buffers.get(name)
                if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
                    buffer = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)  # keeps the layout
                    self._buffers[name] = buffer
                tensor = buffer.copy_(tensor, non_blocking=True)
            held[name] = Piece(tensor, piece.first, piece.total)
        if self.world.device.type == "cuda":
            torch.cuda.current_stream(self.world.device).synchronize()
        return held

    def _write(self, final: Path, state: dict[str, Piece], manifest: dict[str, Any], best: int | None) -> None:
        """In the thread."""
        growing = growing_name(final)

        def finish(files: Entries) -> None:
            backbone = {name.removeprefix(PREFIX): p.tensor for name, p in state.items() if name.startswith(PREFIX)}
            commit(final, {**manifest, "fingerprint": content_hash(backbone), "files": files})
            prune(final, self.keep, best)

        try:
            write(growing, state, self.world, self._group, finish)
        except BaseException as error:  # whatever it is: the run must hear of it, and a thread has no one above it
            if self.world.rank == 0:
                shutil.rmtree(growing, ignore_errors=True)
            self._failure = self._said(final, state, error)
            if isinstance(error, FloatingPointError):
                advice = f"{last_good(self.folder)}; try a lower optim.lr"
                self._failure = RunError(f"the weights are not finite after step {manifest['step']}; {advice}")

    def _said(self, final: Path, state: dict[str, Piece], error: BaseException) -> str:
        needed = sum(piece.nbytes for piece in state.values())
        cause = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())[:200]
        where = f" ({os.path.basename(error.filename)})" if isinstance(error, OSError) and error.filename else ""
        with suppress(OSError):
            where += f"; {shutil.disk_usage(self.folder).free:,} bytes are free"
        return f"{final} was not written: {cause or type(error).__name__}{where}; it takes {needed:,} bytes"
