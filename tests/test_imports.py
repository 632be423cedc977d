"""The order of imports and the calls that nobody may make: the rules of the house, read from the source."""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import facetrain

ROOT = Path(facetrain.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))

# Which rooms a room may import from, besides itself. Data, models and classifier are side by side and meet in training;
# evaluation knows no training, so that it can judge anybody's model.
FLOOR = {"facetrain", "errors", "keyed", "partition", "config", "console", "strictyaml", "recipe", "provenance"}
FLOOR |= {"atomic", "processes", "config_base", "config_loss", "watch.pulse", "watch.meeting"}
STAGES = {"data", "models", "classifier"}
ALLOWED = {
    **dict.fromkeys(FLOOR, FLOOR),
    "distributed": FLOOR,
    "data": FLOOR,
    "models": FLOOR,
    "classifier": FLOOR | {"distributed"},
    "longtail": FLOOR | {"distributed", "classifier", "checkpoints.piece"},
    "checkpoints.piece": FLOOR,
    "checkpoints.files": FLOOR,
    "evaluation": FLOOR | {"distributed", "data", "models", "checkpoints.backbones", "checkpoints.files"},
}
ANYTHING = FLOOR | STAGES | {"distributed", "evaluation", "longtail"}
ANYTHING |= {"checkpoints.backbones", "checkpoints.files", "checkpoints.piece"}
SHARED_OUT = {"checkpoints", "watch"}  # folders with modules of several floors: each module is a room


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "facetrain" if parts == ("__init__",) else _room(parts)


def _room(parts: Sequence[str]) -> str:
    return ".".join(parts[: 2 if parts[0] in SHARED_OUT else 1])


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> Iterator[str]:
    """Dotted names of everything imported, wherever in the file: a late import is an import."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_used(path: Path) -> set[str]:
    names = [name.split(".") for name in imports(path)]
    entries = {p.name.removesuffix(".py") for p in ROOT.iterdir()}
    return {"facetrain" if len(n) < 2 or n[1] not in entries else _room(n[1:]) for n in names if n[0] == "facetrain"}


@pytest.mark.parametrize("path", [p for p in SOURCES if room(p) in ALLOWED], ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    own = room(path)
    assert rooms_used(path) - {own} <= ALLOWED[own]


def test_nothing_below_training_imports_it():
    """Whatever has no rule of its own stands above; nothing with a rule may lean on it."""
    ruled = {room(p) for p in SOURCES} & set(ALLOWED)
    assert ruled >= STAGES | {"evaluation", "distributed", "config"}
    above = {room(p) for p in SOURCES} - ANYTHING
    assert "train" in above
    for path in SOURCES:
        if room(path) in ALLOWED:
            assert not rooms_used(path) & above, path


def test_only_distributed_names_torch_distributed():
    for path in SOURCES:
        names = {name for name in imports(path) if name.startswith("torch.distributed")}
        if room(path) == "launch":
            assert all(name.startswith(("torch.distributed.launcher", "torch.distributed.elastic")) for name in names)
        elif room(path) in ("checkpoints.plan", "checkpoints.storage"):
            assert all(name.startswith("torch.distributed.checkpoint") for name in names), path
        elif room(path) != "distributed":
            assert not names, path
            assert not any(
                isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.distributed")
                for node in ast.walk(tree(path))
            ), path


FORBIDDEN = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "torch.load",
    "yaml.load",
    "yaml.unsafe_load",
    "eval",
    "exec",
}
FORBIDDEN |= {"os.system", "joblib.load", "marshal.loads"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_of_a_user_is_executed(path):
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        assert name not in FORBIDDEN, f"{path}:{node.lineno}: {name}"
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        assert given.get("shell", "False") == "False", f"{path}:{node.lineno}: shell"
        if name in ("np.load", "numpy.load"):
            assert given.get("allow_pickle", "False") == "False", f"{path}:{node.lineno}: allow_pickle"


def test_only_the_restricted_unpickler_knows_pickle():
    users = {str(path.relative_to(ROOT)) for path in SOURCES if {"pickle"} & {n.split(".")[0] for n in imports(path)}}
    assert users <= {"evaluation/unpickle.py", "data/pairs_file.py"}


def test_light_commands_import_nothing_heavy():
    """At a module's top only: inside functions they are welcome."""
    heavy = {"torch", "sklearn", "matplotlib", "onnx", "onnxruntime", "numpy", "cv2", "pydantic", "rich"}
    names = {"__init__", "__main__", "launch", "errors", "cli"}
    commands = sorted((ROOT / "commands").glob("*.py"))
    assert {"data", "evaluate", "options"} <= {path.stem for path in commands}
    for path in [*(ROOT / f"{name}.py" for name in sorted(names)), *commands]:
        for node in tree(path).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert not heavy & {module.split(".")[0] for module in modules}, path
