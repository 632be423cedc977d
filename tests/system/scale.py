"""How often long tests repeat: `FACETRAIN_FAULTS` is quick (default), ci or release; `FACETRAIN_SEED` is the seed."""

import os


def scale(*, quick: int, ci: int, release: int) -> int:
    """The count that was asked for."""
    return {"quick": quick, "ci": ci, "release": release}[os.environ.get("FACETRAIN_FAULTS", "quick")]


def seed() -> int:
    """The seed of everything random in a test, printed so that a failure can be repeated."""
    chosen = int(os.environ.get("FACETRAIN_SEED", "20261122"))
    print(f"FACETRAIN_SEED={chosen}")
    return chosen
