"""No container engine runs where the tests do, so the Dockerfile is read."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
IGNORE = ROOT / "docker" / "Dockerfile.dockerignore"


def _instructions():
    """[(instruction, rest)] with continued lines joined and comments left out."""
    lines = [line for line in (ROOT / "docker" / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def _of(name):
    return [rest for instruction, rest in _instructions() if instruction == name]


def test_only_known_instructions():
    names = [instruction for instruction, _ in _instructions()]
    assert set(names) <= {"ARG", "FROM", "ENV", "RUN", "COPY", "WORKDIR", "USER", "ENTRYPOINT", "CMD"}
    assert names[:2] == ["ARG", "FROM"]
    assert "${BASE}" in _of("FROM")[0]


def test_runs_as_an_ordinary_user():
    users = _of("USER")
    assert users
    assert users[-1].split(":")[0] not in ("root", "0")
    names = [instruction for instruction, _ in _instructions()]
    assert "RUN" not in names[names.index("USER") :]
    made = next(rest for rest in _of("RUN") if "useradd" in rest)
    assert users[-1] in made.split()


def test_no_port_is_published():
    assert _of("EXPOSE") == []
    readme = (ROOT / "docker" / "README.md").read_text()
    assert not re.search(r"docker run[^`]*\s(-p|-P|--publish)[ =]", readme)


def _copied():
    return [source for rest in _of("COPY") for source in rest.split()[:-1]]


@pytest.mark.parametrize("source", _copied())
def test_what_is_copied_exists_and_is_sent_to_the_builder(source):
    assert (ROOT / source).exists()
    lines = IGNORE.read_text().split()
    assert lines[0] == "*"
    assert f"!{source}" in lines
    assert source not in lines


def test_all_of_the_package_is_copied():
    assert {"setup.cfg", "pyproject.toml", "facetrain", "tools/constraints.txt"} <= set(_copied())


def test_torch_of_the_base_is_not_exchanged():
    """The pinned torch is installed only if there is none, and later installations are held to what is there."""
    installs = [rest for rest in _of("RUN") if "pip install" in rest]
    assert len(installs) == 2
    assert installs[0].startswith("python -c 'import torch' 2>/dev/null")
    assert "|| python -m pip install" in installs[0]
    assert "--constraint /opt/constraints.txt" in installs[1]
    written = next(rest for rest in _of("RUN") if "> /opt/constraints.txt" in rest)
    assert "grep -v '^torch=='" in written
    assert 'version("torch")' in written
    pins = [
        line for line in (ROOT / "tools" / "constraints.txt").read_text().splitlines() if line.startswith("torch==")
    ]
    assert len(pins) == 1


def test_the_command_line_is_the_entry_point():
    assert json.loads(_of("ENTRYPOINT")[-1]) == ["facetrain"]
    assert "facetrain = facetrain.cli:main" in (ROOT / "setup.cfg").read_text()
