"""What the benchmarks share: both sides of a comparison timed in turns in one run, and a Markdown report."""

from __future__ import annotations

import argparse
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from facetrain.provenance import circumstances

_FOLDER = Path(__file__).parent.parent / "docs" / "benchmarks"
_SHOWN = ("command", "date", "commit", "processor", "system", "python", "torch", "numpy", "simplejpeg")
_ALLOCATOR = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "OMP_", "MKL_", "KMP_")


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    def scaled(self, factor: float) -> Spread:
        """Each measurement times ``factor``."""
        return Spread(tuple(value * factor for value in self.values))

    def inverse(self, count: float) -> Spread:
        """``count`` per measurement: rates from times."""
        return Spread(tuple(count / value for value in self.values))

    def cells(self, digits: int = 4) -> list[str]:
        """Median and range as two cells of a table, to so many significant digits."""
        low, high = (rounded(value, digits) for value in (min(self.values), max(self.values)))
        return [rounded(self.median, digits), f"{low}..{high}"]


def rounded(value: float, digits: int = 4) -> str:
    """To so many significant digits, without an exponent: 12345.6 -> 12,350; 0.012345 -> 0.01235."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    return f"{round(value, digits - 1 - exponent):,.{max(0, digits - 1 - exponent)}f}"


@dataclass(frozen=True)
class Timing:
    """What one side of a comparison took, one measurement a round, in seconds."""

    cpu: Spread
    wall: Spread


def in_turns(
    sides: Mapping[str, Callable[[], object]], rounds: int, device: torch.device | None = None, warmup: int = 1
) -> dict[str, Timing]:
    """Time every side once a round, one after the other, so that all meet the same disturbances.

    ``cpu`` is processor time of this process and of the child processes that ended in the meantime. On a GPU it is
    the time between two CUDA events instead.
    """
    for side in sides.values():
        for _ in range(warmup):
            side()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            taken[name].append(_timed_on_gpu(side) if device is not None and device.type == "cuda" else _timed(side))
    return {
        name: Timing(Spread(tuple(cpu for cpu, _ in pairs)), Spread(tuple(wall for _, wall in pairs)))
        for name, pairs in taken.items()
    }


def _timed(side: Callable[[], object]) -> tuple[float, float]:
    before, cpu = time.perf_counter(), _processor_seconds()
    side()
    return _processor_seconds() - cpu, time.perf_counter() - before


def _processor_seconds() -> float:
    """Children count from the moment they have been waited for; getrusage resolves microseconds, os.times 10 ms."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _timed_on_gpu(side: Callable[[], object]) -> tuple[float, float]:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    before = time.perf_counter()
    start.record()
    side()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000, time.perf_counter() - before


def leave_kernels_to_openblas() -> None:
    """Start this program again without OPENBLAS_CORETYPE where it is set: BLAS libraries choose for the processor."""
    if "OPENBLAS_CORETYPE" in os.environ:
        left = {key: value for key, value in os.environ.items() if key != "OPENBLAS_CORETYPE"}
        os.execve(sys.executable, [sys.executable, *sys.argv], left)


def ratio(side: Spread, floor: Spread) -> str:
    """Median of the rounds' ratios: both sides of a round ran one after the other."""
    return f"{Spread(tuple(a / b for a, b in zip(side.values, floor.values, strict=True))).median:.2f}"


def peak_memory(device: torch.device) -> int:
    """Peak bytes since the process began (Linux), or on the GPU since its counter was reset.

    Not getrusage's ru_maxrss: a child process inherits its parent's there.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM; run with --no-memory")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are set right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def parser(description: str, rounds: int, devices: bool = True) -> argparse.ArgumentParser:
    """The options that the benchmarks share."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--rounds", type=int, default=rounds, help=f"measurements of each side (default {rounds})")
    made.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default 1)")
    made.add_argument("--out", type=Path, help="write the report there too; a bare name goes to docs/benchmarks/")
    if devices:
        made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return made


def report(title: str, text: str, out: Path | None, device: torch.device | None = None) -> None:
    """Print a report, with what it was measured on, and write it where asked."""
    about = circumstances()
    about["command"] = "python tools/" + about["command"]
    lines = [f"- {key}: {about[key]}" for key in _SHOWN if key in about]
    if device is not None and device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        lines.append(f"- gpu: {properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
    lines.append(f"- load average at the end: {os.getloadavg()[0]:.1f}; torch threads: {torch.get_num_threads()}")
    settings = {key: value for key, value in sorted(os.environ.items()) if key.startswith(_ALLOCATOR)}
    if settings:
        lines.append("- environment: " + " ".join(f"{key}={value}" for key, value in settings.items()))
    content = f"# {title}\n\n{text}\n\n## Measured on\n\n" + "\n".join(lines) + "\n"
    sys.stdout.write(content)
    if out is not None:
        target = _FOLDER / out if len(out.parts) == 1 else out
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
