"""A run from its first to its last update: folder, resume, loop, checkpoints, verification, report."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import torch

from facetrain import preflight, recipe
from facetrain.agreement import agree_on, claimed
from facetrain.atomic import replacing
from facetrain.checkpoint_files import last_good, listed, newest_good, read_manifest, set_aside_newer
from facetrain.config import Config
from facetrain.data.dataset import class_counts
from facetrain.data.loader import Loader, worker_died
from facetrain.distributed import World, joined
from facetrain.errors import InputError, RunError
from facetrain.evaluation.class_map import write_map
from facetrain.evaluation.lfw import verification_table
from facetrain.evaluation.pairs import Verification
from facetrain.evaluation.report import save_verification, write_report
from facetrain.evaluation.verifier import Verifier
from facetrain.monitor import Monitor
from facetrain.optim import learning_rate
from facetrain.processes import StopRequest
from facetrain.provenance import circumstances, versions
from facetrain.train import build_state, train_step


def train(config: Config) -> int:
    """Train as the recipe says, in one of the worker processes; the exit code, 128 + signal where one ended the run.

    Raises:
        InputError: the data, the output folder or the number of ranks do not fit the recipe.
        RunError: the loss is not finite.
    """
    try:
        return _train(config)
    except RuntimeError as error:
        raise worker_died(error) or error from None


def _train(config: Config) -> int:
    inputs = preflight.check(config, int(os.environ.get("WORLD_SIZE", "1")))
    with joined(config.device, config.train.timeout) as world, StopRequest().listening() as stop:
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        torch.backends.cudnn.allow_tf32 = config.train.tf32
        torch.set_float32_matmul_precision("high" if config.train.tf32 else "highest")
        agree_on(config, inputs, world)
        with claimed(config.output, world):
            return _Run(config, inputs, world, stop).train()


class _Run:
    """One run on one rank."""

    def __init__(self, config: Config, inputs: preflight.Inputs, world: World, stop: StopRequest) -> None:
        self.config, self.images, self.world, self.stop = config, inputs.images, world, stop
        self.notes = inputs.notes
        images = inputs.images
        self.loader = Loader(
            images,
            config.data,
            input_size=config.model.input_size,
            batch_size=config.train.batch_size,
            accumulation=config.train.accumulation,
            seed=config.seed,
            rank=world.rank,
            world_size=world.size,
            pin_memory=world.device.type == "cuda",
        )
        self.total_steps = config.train.epochs * self.loader.steps_per_epoch
        counts = class_counts(images.labels, images.num_classes)
        self.state = build_state(config, counts, world, self.loader.steps_per_epoch)
        self.verifier = Verifier(
            inputs.pair_sets, config.model.input_size, config.evaluate.batch_size, config.evaluate.flip
        )
        self.about: dict[str, Any] = {
            "config": config.model_dump(mode="json"),
            "num_classes": images.num_classes,
            "num_images": len(images),
            "versions": versions() if world.rank == 0 else {},  # which writes the manifest
        }

    def train(self) -> int:
        """All updates that are left, then the last checkpoint, verification and report."""
        notes = self._resume() if self.config.train.resume == "auto" else []
        notes += self.notes
        start = self.state.step
        if start < self.total_steps:
            self._describe()
        with Monitor(self.config.output, start, self.total_steps, self.world.device, self.world.rank == 0) as monitor:
            for note in [self._greeting(), *notes]:
                monitor.say(note)
            stopped_by = self._loop(monitor)
            if self.state.step > start:
                self._save(monitor)
            if stopped_by:
                monitor.say(
                    f"stopped by {signal.Signals(stopped_by).name} at step {self.state.step}/{self.total_steps}; saved "
                    f"in {self.config.output / 'checkpoints'}; the same command with train.resume=auto goes on"
                )
                return 128 + stopped_by
            self._map(start_of_clouds=False)
            results = self._verify(monitor)
        if self.world.rank == 0:
            self._conclude(monitor, results)
        self.world.barrier()
        return 0

    def _loop(self, monitor: Monitor) -> int:
        """Updates until the last one or a signal, whose number is returned, the same on every rank."""
        config, state, per_epoch = self.config, self.state, self.loader.steps_per_epoch
        losses = torch.zeros((), dtype=torch.float64, device=self.world.device)
        interval_start = state.step
        state.backbone.train()
        self._map(start_of_clouds=True)
        for batches in self.loader.iterate(state.step, self.total_steps):
            lr = learning_rate(state.step, self.total_steps, per_epoch, config.optim.lr, config.schedule)
            losses += train_step(state, batches, lr)
            last = state.step == self.total_steps
            save = _due(state.step, config.train.checkpoint_every) and not last
            verify = _due(state.step, config.evaluate.every) and not last
            clouds = state.step == state.leap.start_step  # a map is drawn, of the same network on every rank
            log = _due(state.step, config.train.log_every) or save or verify or clouds or last
            stopped_by = self._agree() if log or self.world.device.type == "cpu" else 0
            if log or stopped_by:
                steps = state.step - interval_start
                loss = losses.item() / steps  # the one wait for the device
                if not math.isfinite(loss):
                    good = last_good(config.output / "checkpoints")
                    raise RunError(
                        f"the loss is {loss} between steps {interval_start + 1} and {state.step}; {good}; "
                        "try a lower optim.lr, optim.clip_norm or warm-up"
                    )
                monitor.interval(state.step, state.step / per_epoch, loss, lr, steps * config.train.batch_size)
                if state.leap.active:
                    monitor.leap(state.step, state.leap.summary())
                losses.zero_()
                interval_start = state.step
            if state.leap.active and state.step % per_epoch == 0:
                monitor.angles(state.step, state.step / per_epoch, state.leap.histograms())
                monitor.pause()
            if stopped_by:
                return stopped_by
            self._map(start_of_clouds=True)
            if save:
                self._save(monitor)
            if verify:
                self._verify(monitor)
        return 0

    def _map(self, start_of_clouds: bool) -> None:
        """Keep the embeddings of a few people, before the first step with clouds and at the end."""
        leap, step = self.config.leap, self.state.step
        due = step == self.state.leap.start_step if start_of_clouds else step == self.total_steps
        if leap.active and due:
            write_map(
                self.config.output,
                step,
                self.state.backbone,
                self.images,
                threshold=leap.head_threshold,
                seed=self.config.seed,
                input_size=self.config.model.input_size,
                world=self.world,
            )

    def _agree(self) -> int:
        """The signal that any rank got (0: none), so that all leave at one step; averages what they saw differently.

        A run may be saved at any step where this is called, and at no other: it goes on from there as if it had not
        been, for the running statistics are averaged whether or not it is saved.
        """
        self.world.average_buffers(self.state.backbone)
        return self.world.largest(self.stop.signal)

    def _save(self, monitor: Monitor) -> Path:
        path = self.state.save(self.about)
        monitor.pause()
        return path

    def _verify(self, monitor: Monitor) -> list[tuple[str, Verification]]:
        if not self.config.evaluate.sets:
            return []
        results = self.verifier.run(self.state.backbone, self.world)
        for name, result in results:
            monitor.verification(self.state.step, name, result.record())
            monitor.say(f"[{name}] step {self.state.step}: {result.line()}")
        monitor.pause()
        return results

    def _conclude(self, monitor: Monitor, results: list[tuple[str, Verification]]) -> None:
        """Leave the last results and the report, and say where everything is."""
        output = self.config.output
        for name, result in results:
            save_verification(output, name, result)
        report = write_report(output, self.images, self.verifier.sets)
        if results:
            table, remarks = verification_table(results)
            monitor.console.print(table)
            monitor.console.print(remarks, highlight=False, markup=False)
        monitor.say(f"report       {report}")
        monitor.say(f"checkpoint   {listed(output / 'checkpoints')[-1]}")
        monitor.say(f"TensorBoard  tensorboard --logdir {output / 'tensorboard'}")

    def _resume(self) -> list[str]:
        """Continue from the newest good checkpoint, where there is one; what to tell about it."""
        folder = self.config.output / "checkpoints"
        path, problems = self.world.broadcast_object(newest_good(folder) if self.world.rank == 0 else None)
        if path is None:
            if problems:
                raise InputError(f"train.resume=auto: no checkpoint under {folder} can be read: {problems[0]}")
            return []
        notes = [f"warning: {problem}" for problem in problems]
        self.state.load(path)
        if self.state.step > self.total_steps:
            raise InputError(
                f"train.epochs {self.config.train.epochs} ends at step {self.total_steps}, but {path} has made "
                f"{self.state.step} already; raise train.epochs"
            )
        if self.world.rank == 0:
            set_aside_newer(path)
        before = read_manifest(path)["config"]
        changed = preflight.changes(before, self.about["config"])
        notes += [f"changed since that checkpoint: {key} from {old} to {new}" for key, old, new in changed]
        finished = self.state.step == self.total_steps
        said = f"going on from {path}" + (", which has made all its steps: it is only verified again" * finished)
        return [said, *notes]

    def _greeting(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.state.backbone.parameters())
        return (
            f"{self.config.output}: {len(self.images):,} images of {self.images.num_classes:,} people, "
            f"{self.config.model.name} with {parameters / 1e6:.2f} M parameters, "
            f"{self.world.size} x {self.world.device.type}, steps {self.state.step}..{self.total_steps}"
        )

    def _describe(self) -> None:
        """Leave the recipe and the circumstances in the run's folder."""
        output = self.config.output
        if self.world.rank == 0:
            details = circumstances() | {"ranks": str(self.world.size), "device": self.world.device.type}
            for name, text in (
                ("versions.json", json.dumps(details, indent=1) + "\n"),
                ("config.yaml", recipe.dump(self.config)),
            ):
                with replacing(output / name) as growing:
                    growing.write_text(text)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
