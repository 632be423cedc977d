"""``train.resume: auto``: a training state filled from the newest checkpoint that verifies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from facetrain import preflight
from facetrain.checkpoints.files import listed, read_manifest, set_aside_newer, verify
from facetrain.config import Config
from facetrain.distributed import World
from facetrain.errors import InputError
from facetrain.train import TrainState


def go_on(config: Config, state: TrainState, total_steps: int) -> tuple[dict[str, Any] | None, list[str]]:
    """Fill ``state`` from the newest good checkpoint of the run's folder; all ranks together.

    Args:
        config: the recipe of now; what may differ from the checkpoint's is told, what may not is refused.
        state: freshly built.
        total_steps: that the run shall have made at its end.

    Returns:
        (the checkpoint's manifest, None where there is no checkpoint yet; lines to tell).

    Raises:
        InputError: there are checkpoints and none is good, or it is of another recipe or further than the run shall go.
    """
    folder, world = config.output / "checkpoints", state.world
    path, problems = _newest_good(folder, world)
    if path is None:
        if problems:
            raise InputError(f"train.resume=auto: no checkpoint under {folder} can be read: {problems[0]}")
        return None, []
    state.load(path)
    if state.step > total_steps:
        raise InputError(
            f"train.epochs {config.train.epochs} ends at step {total_steps}, but {path} has made {state.step} already; "
            "raise train.epochs"
        )
    if world.rank == 0:
        set_aside_newer(path)
    manifest = read_manifest(path)
    finished = ", which has made all its steps: it is only verified again" * (state.step == total_steps)
    changed = preflight.changes(manifest["config"], config.model_dump(mode="json"))
    return manifest, [
        f"going on from {path}{finished}",
        *(f"warning: {problem}" for problem in problems),
        *(f"changed since that checkpoint: {key} from {old} to {new}" for key, old, new in changed),
    ]


def _newest_good(folder: Path, world: World) -> tuple[Path | None, list[str]]:
    """As :func:`facetrain.checkpoints.files.newest_good`, each file read by one of the ranks."""
    problems: list[str] = []
    for path in reversed(world.broadcast_object(listed(folder))):
        problem = None
        try:
            names = sorted(verify(path, contents=False)["files"])
            verify(path, names[world.rank :: world.size], lambda _: world.pulse.beat())
        except InputError as found:
            problem = str(found)
        told = [each for each in world.gather_objects(problem) if each]
        if not told:
            return path, problems
        problems.append(told[0])
    return None, problems
