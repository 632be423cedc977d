import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from facetrain import __version__, cli, launch
from facetrain.config import ModelConfig
from facetrain.data.images import encode_jpeg
from facetrain.errors import RunError
from facetrain.recipe import load

ROOT = Path(cli.__file__).parents[1]
MODEL = {"width": 4, "input_size": 16, "embedding_size": 8}


def photos(folder: Path, people: int = 3, each: int = 4) -> Path:
    generator = np.random.default_rng(0)
    for person in range(people):
        (folder / f"person{person}").mkdir(parents=True)
        for photo in range(each):
            image = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            (folder / f"person{person}" / f"{photo}.jpg").write_bytes(encode_jpeg(image))
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with a recipe, photos, a packed set, a model, and some broken things."""
    from facetrain.checkpoints.backbones import write_backbone
    from facetrain.models import build_backbone

    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    (tmp_path / "lone.rec").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise.bin").write_bytes(bytes(range(256)))
    (tmp_path / "older" / "checkpoints" / "step_00000002").mkdir(parents=True)
    (tmp_path / "older" / "checkpoints" / "step_00000002" / "manifest.json").write_text("{}")
    model = ModelConfig(**MODEL)
    write_backbone(tmp_path / "model.safetensors", build_backbone(model), model)
    train = {"batch_size": 4, "epochs": 1}
    recipe = {
        "output": "run",
        "device": "cpu",
        "model": MODEL,
        "train": train,
        "data": {"path": "photos", "workers": 0},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return tmp_path


def refused(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command that must be refused says."""
    code = cli.main(words)
    out, said = capfd.readouterr()
    assert code == 2
    assert out == ""
    assert said.startswith("facetrain: error: ")
    assert said.count("\n") == 1
    assert len(said) <= 201
    return said.removeprefix("facetrain: error: ")


LIKELIEST_MISTAKES = {
    "typo in a key": (["train.epoch=3"], "command line: train.epoch = 3: unknown key; did you mean train.epochs?"),
    "key given twice": (["seed=1", "seed=2"], "seed is given twice"),
    "wrong type": (["optim.lr=fast"], "optim.lr = fast: expected a number > 0"),
    "impossible combination": (["train.accumulation=3"], "must be a multiple of train.accumulation 3"),
    "data path missing": (["data.path=photo"], "photo"),
    "index file missing": (["data.path=lone.rec"], "lone.idx"),
    "folder without images": (["data.path=empty"], "empty"),
    "wrong number of classes": (["data.num_classes=4"], "photos has 3"),
    "batch larger than the data": (["train.batch_size=64"], "64"),
    "pair set missing": (["evaluate.sets=[lfw.bin]"], "lfw.bin"),
    "output holds another run": (["output=older"], "already holds a run; set train.resume=auto"),
    "output is a file": (["output=r.yaml"], "r.yaml is a file; expected a folder"),
    "no process at all": (["--nproc", "0"], "--nproc 0: expected at least 1 process"),
    "more ranks than images a step": (["--nproc", "4"], "set train.batch_size to at least 8"),
    "mxnet not installed": (["data.path=packed", "data.reader=mxnet"], "mxnet"),
    "cuda without a GPU": (["device=cuda"], "no GPU"),
}


@pytest.mark.parametrize(("words", "says"), LIKELIEST_MISTAKES.values(), ids=LIKELIEST_MISTAKES)
@pytest.mark.parametrize("nproc", [1, 2])
def test_a_users_likeliest_mistakes_are_one_line_before_anything_starts(here, capfd, monkeypatch, words, says, nproc):
    monkeypatch.setattr(launch, "run", lambda *_: pytest.fail("processes were started"))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    if "data.path=packed" in words:
        assert cli.main(["data", "pack", "photos", "packed", "--size", "16", "--workers", "1"]) == 0
        words = [word.replace("packed", "packed/train.rec") for word in words]
        capfd.readouterr()
    wanted = [] if "--nproc" in words else ["--nproc", str(nproc)]
    assert says in refused(capfd, "train", "r.yaml", *words, *wanted)
    assert not (here / "run").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "nope.yaml"], "nope.yaml: no such recipe"),
        (["train", "s.yaml"], "s.yaml: no such recipe; did you mean r.yaml?"),
        (["train", "photos"], "photos: Is a directory; expected a recipe"),
        (["train"], "Missing argument 'CONFIG'; see facetrain train --help"),
        (["trian"], "No such command 'trian'"),
        (["train", "r.yaml", "--nprocs", "2"], "No such option: --nprocs"),
        (["train", "r.yaml", "--nproc", "two"], "Invalid value for '--nproc'"),
        (["eval", "lfw", "nowhere", "noise.bin"], "nowhere"),
        (["eval", "lfw", "empty", "noise.bin"], "empty"),
        (["eval", "lfw", "model.safetensors", "noise.bin"], "noise.bin"),
        (["eval", "lfw", "model.safetensors", "lfw.bin"], "lfw.bin"),
        (["eval", "lfw", "r.yaml", "noise.bin"], "r.yaml"),
        (["embed", "model.safetensors", "nowhere", "out.npz"], "nowhere"),
        (["embed", "model.safetensors", "photos", "no/out.npz"], "no/out.npz"),
        (["data", "pack", "empty", "out"], "empty"),
        (["export", "empty", "out.onnx"], "empty"),
        (["data", "check", "lone.rec"], "lone.idx"),
        (["data", "subset", "photos", "out", "--head", "9"], "classes"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_mistakes_on_the_command_line_are_one_line(here, capfd, words, says):
    assert says in refused(capfd, *words)


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "facetrain", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_real_command_fails_in_one_line(here):
    result = run("train", "r.yaml", "optim.lr=fast")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "facetrain: error: command line: optim.lr = fast: expected a number > 0\n"


def test_two_real_workers_fail_in_one_line(here):
    result = run("eval", "lfw", "model.safetensors", "noise.bin", "--nproc", "2", "--device", "cpu")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("facetrain: error: ")
    assert "noise.bin" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_under_torchrun_one_rank_speaks(here, capfd, monkeypatch, rank):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29400")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(here / "word"))
    assert cli.main(["train", "r.yaml", "--nproc", "2"]) == 2
    said = capfd.readouterr().err
    assert "leave --nproc out" in (here / "word").read_text()
    assert said.count("\n") == (rank == 0)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (RunError("the loss is nan"), 1, "error: the loss is nan"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a/b"), 2, "error: a/b: No space left on device; free some"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 2, "error: a/b: Permission denied"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
        (type("OutOfMemoryError", (RuntimeError,), {})(), 1, "error: the GPU's memory ran out; lower train.batch_size"),
    ],
    ids=["run", "disk", "permission", "ctrl-c", "memory"],
)
def test_what_ends_a_run_is_one_line(here, capfd, monkeypatch, error, code, says):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("facetrain.recipe.load", fail)
    assert cli.main(["config", "r.yaml"]) == code
    said = capfd.readouterr().err
    assert said.startswith(f"facetrain: {says}")
    assert said.count("\n") == 1


def test_a_defect_keeps_its_traceback(here, monkeypatch):
    monkeypatch.setattr("facetrain.recipe.load", lambda *_: {}["defect"])
    with pytest.raises(KeyError, match="defect"):
        cli.main(["config", "r.yaml"])


def test_config_prints_what_reads_back(here, capfd):
    assert cli.main(["config", "r.yaml", "optim.lr=5e-4", "data.path=1e5"]) == 0
    (here / "again.yaml").write_text(capfd.readouterr().out)
    assert load("again.yaml") == load("r.yaml", ["optim.lr=5e-4", "data.path=1e5"])
    assert load("again.yaml").optim.lr == 5e-4


def test_recipes_are_laid_over_one_another(here, capfd):
    (here / "slow.yaml").write_text("extends: r.yaml\noptim: {lr: 0.01}\n")
    (here / "long.yml").write_text("train: {epochs: 9}\n")
    assert cli.main(["config", "r.yaml", "slow.yaml", "long.yml", "optim.momentum=0.5"]) == 0
    (here / "again.yaml").write_text(capfd.readouterr().out)
    words = ["optim.lr=0.01", "train.epochs=9", "optim.momentum=0.5"]
    assert load("again.yaml") == load("r.yaml", words)
    (here / "long.yml").write_text("train:\n  epoch: 9\n")
    for command in ("config", "train"):
        said = refused(capfd, command, "r.yaml", "long.yml")
        assert said == "long.yml:2: train.epoch = 9: unknown key; did you mean train.epochs?\n"


def test_workers_are_told_the_users_own_words(here, monkeypatch):
    told: list[tuple[list[str], int, int]] = []
    monkeypatch.setattr(launch, "run", lambda words, n, max_restarts: told.append((words, n, max_restarts)) or 7)
    commands = [
        "train r.yaml seed=3 --nproc 2 --restarts 0",
        "embed --no-flip --batch-size 3 --device cpu --normalise --nproc 2 -- a b c",
        "eval lfw a b c --rule=nearest --output=o --device=cpu --nproc=2",
    ]
    for command in commands:
        assert cli.main(command.split()) == 7
    monkeypatch.setattr(sys, "argv", ["facetrain", *commands[0].split()])
    assert cli.main() == 7
    assert told == [(command.split(), 2, 0) for command in (*commands, commands[0])]
    assert cli.main(["train", "r.yaml", "--restarts", "4", "--nproc", "1"]) == 7
    assert told[-1][1:] == (1, 4)


def test_a_worker_of_ours_takes_the_words_and_starts_nobody(here, monkeypatch):
    trained = []
    monkeypatch.setattr(launch, "run", lambda *_: pytest.fail("a worker started workers"))
    monkeypatch.setattr(launch, "follow_launcher", lambda: None)
    monkeypatch.setattr("facetrain.run.train", lambda config, inputs: trained.append(config) or 5)
    given = {"RANK": "1", "WORLD_SIZE": "2", "FACETRAIN_LAUNCHER": "1"}
    given |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29400"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["train", "r.yaml", "seed=3", "--nproc", "2"]) == 5
    assert trained == [load("r.yaml", ["seed=3"])]


def test_pack_check_subset_and_embed(here, capfd):
    assert cli.main(["data", "pack", "photos", "packed", "--size", "16", "--workers", "1"]) == 0
    assert "12 images of 3 people" in capfd.readouterr().out
    assert cli.main(["data", "check", "packed/train.rec", "--workers", "1"]) == 0
    assert "12 images of 3 people" in capfd.readouterr().out
    words = ["data", "subset", "packed/train.rec", "cut", "--head", "1", "--tail", "1", "--tail-images", "2"]
    assert cli.main(words) == 0
    assert "1 head classes with 4 images" in capfd.readouterr().out
    for nproc in ("1", "2"):
        words = ["embed", "model.safetensors", "cut/train.rec", f"out{nproc}.npz", "--device", "cpu", "--nproc", nproc]
        assert cli.main(words) == 0
    with np.load("out1.npz") as held, np.load("out2.npz") as shared:
        np.testing.assert_allclose(held["embeddings"], shared["embeddings"], rtol=1e-5, atol=1e-6)
        assert (held["embeddings"].shape, held["labels"].tolist()) == ((6, 8), [0, 0, 0, 0, 1, 1])


def test_check_of_damaged_data_ends_with_exit_code_2(here, capfd):
    (here / "photos" / "person1" / "0.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    assert cli.main(["data", "check", "photos", "--workers", "1"]) == 2
    out, said = capfd.readouterr()
    assert "12 images of 3 people" in out
    assert said.count("\n") == 1
    assert "person1/0.jpg" in said


def test_help_is_fast_and_shows_an_example_for_each_command(capfd):
    started = time.perf_counter()
    result = run("--help")
    seconds = time.perf_counter() - started
    assert result.returncode == 0
    assert seconds < 2  # 0.2 s on a quiet machine; importing torch alone takes longer than that
    data = ["data pack", "data check", "data subset", "data demo"]
    for words in ("train", "config", "embed", "report", "export", "eval lfw", *data):
        assert cli.main([*words.split(), "--help"]) == 0
        assert f"Example: facetrain {words} " in capfd.readouterr().out
    assert cli.main(["--version"]) == 0
    assert capfd.readouterr().out == f"facetrain {__version__}\n"
    assert cli.main([]) == 2


def test_help_imports_nothing_heavy():
    code = "import sys; from facetrain import cli; cli.main(['train', '--help']); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "numpy", "rich", "matplotlib", "facetrain.config"} & set(loaded.split())


@pytest.mark.slow
def test_ctrl_c_saves_and_leaves(here):
    words = ["train", "r.yaml", "--nproc", "2", "train.epochs=100000", "train.log_every=1", "train.batch_size=8"]
    process = subprocess.Popen(
        [sys.executable, "-m", "facetrain", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    metrics = here / "run" / "metrics.jsonl"
    end = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < end:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "stopped by SIGINT at step" in said
    assert list((here / "run" / "checkpoints").glob("step_*"))
