"""A run from its first to its last update: folder, resume, loop, checkpoints, verification, report."""

from __future__ import annotations

import json
import math
import os
import signal
from contextlib import nullcontext
from statistics import fmean

import torch

from facetrain import launch, preflight, recipe
from facetrain.agreement import agree_on, claimed
from facetrain.atomic import replacing
from facetrain.checkpoints.files import listed
from facetrain.config import Config
from facetrain.data.damage_log import DamageLog
from facetrain.data.dataset import class_counts
from facetrain.data.loader import Loader, worker_died
from facetrain.distributed import World, joined
from facetrain.evaluation.class_map import write_map
from facetrain.evaluation.lfw import verification_table
from facetrain.evaluation.pairs import Verification
from facetrain.evaluation.report import save_verification, write_report
from facetrain.evaluation.verifier import Verifier
from facetrain.monitor import Monitor
from facetrain.nonfinite import Guard
from facetrain.optim import learning_rate
from facetrain.processes import StopRequest, keep_freed_memory
from facetrain.profiling import Profile
from facetrain.provenance import circumstances
from facetrain.resuming import go_on
from facetrain.saving import Saver
from facetrain.train import build_state, train_step
from facetrain.watch.straggler import Paces
from facetrain.watch.watchdog import Watchdog, group_timeout

_READING = 1800.0  # seconds beyond the usual timeout that a checkpoint may take to be read
_COMPILING = 1800.0  # seconds that torch.compile may add to the first step


def train(config: Config, inputs: preflight.Inputs | None = None) -> int:
    """Train as the recipe says, in one of the worker processes; the exit code, 128 + signal where one ended the run.

    ``inputs`` are what :func:`facetrain.preflight.check` has opened; None: they are opened here.

    Raises:
        InputError: the data, the output folder or the number of ranks do not fit the recipe.
        RunError: the loss is not finite.
    """
    try:
        return _train(config, inputs or preflight.check(config, int(os.environ.get("WORLD_SIZE", "1"))))
    except RuntimeError as error:
        raise worker_died(error) or error from None


def _train(config: Config, inputs: preflight.Inputs) -> int:
    with (
        joined(config.device, group_timeout(config.train.timeout)) as world,
        StopRequest().listening() as stop,
        Watchdog(world, config.output, config.train.timeout),
    ):
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        if world.device.type == "cpu":
            keep_freed_memory()
        torch.backends.cudnn.allow_tf32 = config.train.tf32
        torch.set_float32_matmul_precision("high" if config.train.tf32 else "highest")
        agree_on(config, inputs, world)
        with claimed(config.output, world):
            run = _Run(config, inputs, world, stop)
            try:
                return run.train()
            finally:
                run.saver.close()


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
        self.saver = Saver(config, images, world, self.total_steps, self.loader.steps_per_epoch)
        self.guard = Guard(config, images, self.saver.last_good, writes=world.rank == 0)
        self.damage = DamageLog(config.output, config.data.max_damaged, config.data.path)
        self.paces = Paces(world)

    def train(self) -> int:
        """All updates that are left, then the last checkpoint, verification and report."""
        again = self.world.largest(launch.restarts()) > 0
        notes = self._resume() if again or self.config.train.resume == "auto" else []
        notes += self.notes
        start = self.state.step
        if start < self.total_steps:
            self._describe()
        self.profile = Profile(self.config.output / "profile", self.world, start) if self.config.profile else None
        if self.profile and self.total_steps - start < self.profile.updates:
            notes.append(f"warning: profile=true needs {self.profile.updates} updates; this run has too few left")
        with Monitor(self.config.output, start, self.total_steps, self.world.device, self.world.rank == 0) as monitor:
            for note in [self._greeting(), *notes]:
                monitor.say(note)
            with self.world.pulse.guarded(), self.profile.listening() if self.profile else nullcontext():
                stopped_by = self._loop(monitor)
            if self.state.step > start:
                self.saver.save(self.state, monitor)
            if stopped_by:
                self.saver.finish()
                monitor.say(
                    f"stopped by {signal.Signals(stopped_by).name} at step {self.state.step}/{self.total_steps}; saved "
                    f"in {self.config.output / 'checkpoints'}; the same command with train.resume=auto goes on"
                )
                return 128 + stopped_by
            self._map(monitor, start_of_clouds=False)
            results = self._verify(monitor)
            if self._best_so_far(results):
                self.saver.save(self.state, monitor)
            self.saver.finish()
        if self.world.rank == 0:
            self._conclude(monitor, results)
        self.world.barrier()
        return 0

    def _loop(self, monitor: Monitor) -> int:
        """Updates until the last one or a signal, whose number is returned, the same on every rank."""
        config, state, per_epoch = self.config, self.state, self.loader.steps_per_epoch
        state.backbone.train()
        self._map(monitor, start_of_clouds=True)
        pulse = self.world.pulse
        pulse.beat(state.step, "the first step", allowed=_COMPILING if config.model.compile else 0.0)
        self.paces.begin()
        for batches in self.loader.iterate(state.step, self.total_steps):
            self.damage.note(batches)
            lr = learning_rate(state.step, self.total_steps, per_epoch, config.optim.lr, config.schedule)
            self.guard.note(train_step(state, batches, lr), state.step)
            pulse.beat(phase="records")
            last = state.step == self.total_steps
            save = _due(state.step, config.train.checkpoint_every) and not last
            verify = _due(state.step, config.evaluate.every) and not last
            clouds = state.step == state.leap.start_step  # a map is drawn, of the same network on every rank
            log = _due(state.step, config.train.log_every) or save or verify or clouds or last
            on_cpu = self.world.device.type == "cpu"  # where looking costs nothing
            stopped_by = self._agree(monitor) if log or on_cpu else 0
            if log or stopped_by or (on_cpu and self.guard.alarmed()):
                self._log(monitor, lr)
            if state.leap.active and state.step % per_epoch == 0:
                monitor.angles(state.step, state.step / per_epoch, state.leap.histograms())
                monitor.pause()
            if stopped_by:
                return stopped_by
            self._map(monitor, start_of_clouds=True)
            better = verify and self._best_so_far(self._verify(monitor))
            if save or better:
                self.saver.save(self.state, monitor)
            if self.profile and (table := self.profile.after(state.step)):
                monitor.say(table)
            pulse.beat(state.step, "waiting for images")
            self.paces.begin()
        return 0

    def _log(self, monitor: Monitor, lr: float) -> None:
        """Judge and record the interval that ends here."""
        step, leap = self.state.step, self.state.leap
        interval = self.guard.judge()
        self.saver.about |= {"skipped": list(self.guard.skipped), "damaged_images": self.damage.state()}
        self.saver.look(monitor)
        for line in interval.warnings + [f"warning: {line}" for line in self.paces.exchange()]:
            monitor.say(line)
        if math.isfinite(interval.loss):
            images = interval.steps * self.config.train.batch_size
            epoch = step / self.loader.steps_per_epoch
            monitor.interval(step, epoch, interval.loss, interval.gradient_norm, lr, images)
        if leap.active:
            monitor.leap(step, leap.summary())

    def _map(self, monitor: Monitor, start_of_clouds: bool) -> None:
        """Keep the embeddings of a few people, before the first step with clouds and at the end."""
        leap, step = self.config.leap, self.state.step
        due = step == self.state.leap.start_step if start_of_clouds else step == self.total_steps
        if leap.active and due:
            self.world.pulse.beat(phase="drawing a map")
            told = write_map(
                self.config.output,
                step,
                self.state.backbone,
                self.images,
                threshold=leap.head_threshold,
                seed=self.config.seed,
                input_size=self.config.model.input_size,
                world=self.world,
            )
            if told:
                monitor.say(told)

    def _agree(self, monitor: Monitor) -> int:
        """The signal that any rank got (0: none), so that all leave at one step; averages what they saw differently.

        A run may be saved at any step where this is called, and at no other: it goes on from there as if it had not
        been, for the running statistics are averaged whether or not it is saved.
        """
        if warning := self.damage.exchange(self.world):
            monitor.say(warning)
        self.world.average_buffers(self.state.backbone)
        return self.world.largest(self.stop.signal)

    def _verify(self, monitor: Monitor) -> list[tuple[str, Verification]]:
        if not self.config.evaluate.sets:
            return []
        pulse = self.world.pulse
        pulse.beat(phase="verification")
        results = self.verifier.run(self.state.backbone, self.world, progress=lambda _: pulse.beat())
        for name, result in results:
            monitor.verification(self.state.step, name, result.record())
            monitor.say(f"[{name}] step {self.state.step}: {result.line()}")
        monitor.pause()
        return results

    def _best_so_far(self, results: list[tuple[str, Verification]]) -> bool:
        if not results:
            return False
        # Rank 0's number: on unlike processors the last bit may differ, and with it what ranks do next.
        accuracy = self.world.broadcast_object(fmean(result.accuracy for _, result in results))
        return self.saver.better(accuracy, self.state.step)

    def _conclude(self, monitor: Monitor, results: list[tuple[str, Verification]]) -> None:
        """Leave the last results and the report, and say where everything is."""
        self.world.pulse.beat(phase="the report", allowed=self.config.train.timeout)
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
        self.world.pulse.beat(phase="reading the checkpoint", allowed=_READING)
        manifest, notes = go_on(self.config, self.state, self.total_steps)
        if manifest is not None:
            self.saver.restore(manifest)
            self.guard.skipped[:] = manifest["skipped"]
            self.damage.restore(manifest["damaged_images"])
        return notes

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
