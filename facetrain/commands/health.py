"""``facetrain health``: whether the run on this machine lives, for Docker's HEALTHCHECK and Kubernetes' probes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from facetrain.watch.pulse import HEARTBEAT, HEARTBEAT_SECONDS

_MISSED = 6  # writes of the file: a busy disk may delay some


def health(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help=f"the heartbeat file; left out: what {HEARTBEAT} in the environment says"
        ),
    ] = None,
) -> None:
    """Say by the exit code whether a run lives: 0 healthy or nothing trains, 1 hanging or silent."""
    path = file or Path(os.environ.get(HEARTBEAT, ""))
    problem = ailing(path) if path.name else ""
    typer.echo(problem or ("healthy" if path.name and path.exists() else "nothing trains here"))
    if problem:
        raise SystemExit(1)


def ailing(path: Path) -> str:
    """What is wrong with the run that writes the heartbeat file ``path``; empty: nothing, or none runs."""
    try:
        beat = json.loads(path.read_text())
        age, left = max(0.0, time.time() - float(beat["written"])), float(beat["left"])
        step, place, timeout = int(beat["step"]), str(beat["place"]), float(beat["timeout"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError):
        return f"{path} is not a heartbeat file of facetrain"
    where = f"at step {step} {place}"
    if age > _MISSED * HEARTBEAT_SECONDS:
        return f"unhealthy: no heartbeat for {age:.0f} s, last {where}; the process is stopped, killed or stuck"
    if left - age < 0:
        return f"unhealthy: no step for more than {timeout:g} s, {where}"
    return ""
