"""The driver of studies: what it starts, where it goes on, what it refuses, and how it stops."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
STUB = Path(__file__).parent / "study_stub.py"
sys.path.insert(0, str(ROOT / "tools"))

import study_data  # noqa: E402
import study_plot  # noqa: E402
import study_run  # noqa: E402
import study_table  # noqa: E402
import table6  # noqa: E402
from study_file import read_study  # noqa: E402

from facetrain import recipe  # noqa: E402
from facetrain.errors import InputError  # noqa: E402

STUDY = """\
output: out
seeds: [0, 1]
recipes: [base.yaml]
evaluations:
  heldout: facetrain eval openset {run} {data}/heldout/train.rec --output {output}
settings:
  small:
    title: 2 x 6, 4 x 2
    data: facetrain data demo {data} --people 6
methods:
  cosface: {title: CosFace}
  leap: {title: LEAP-CV, baseline: cosface, keys: {leap: {variant: vanilla, track: false, start_epoch: 1}}}
"""
BASE = "data: {path: data/small/train.rec}\nleap: {track: true, head_threshold: 2}\ntrain: {epochs: 3}\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STUB_CALLS", str(tmp_path / "calls.txt"))
    for module in (study_run, study_data):
        monkeypatch.setattr(module, "argv", lambda command, nproc=None: [sys.executable, str(STUB), *command[1:]])
    monkeypatch.setattr(study_run, "_POLL", 0.01)
    monkeypatch.setattr(study_data, "_POLL", 0.01)
    monkeypatch.setattr(study_table, "plot", lambda study, found: [])
    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "base.yaml").write_text(BASE)
    return tmp_path


def calls(folder: Path) -> list[str]:
    """What was started since the last call."""
    file = folder / "calls.txt"
    lines = file.read_text().splitlines() if file.exists() else []
    file.write_text("")
    return lines


def change(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert text.count(before) == 1
    file.write_text(text.replace(before, after))


def test_a_study_from_its_data_to_its_table(here, capsys, monkeypatch):
    monkeypatch.setattr(study_table, "plot", study_plot.plot)
    assert table6.main(["study.yaml", "--jobs", "2"]) == 0
    started = calls(here)
    assert started[0] == "data demo data/small --people 6"
    assert sorted(line.split()[0] for line in started[1:]) == ["eval"] * 4 + ["train"] * 4
    assert "train out/small/leap/seed_1/recipe.yaml train.resume=auto" in started
    evaluated = "eval openset out/small/leap/seed_1 data/small/heldout/train.rec --output "
    assert evaluated + "out/small/leap/seed_1/results/heldout.json" in started
    printed = capsys.readouterr().out
    assert printed == (here / "out/table6.md").read_text() + (
        "\nwritten: out/table6.md, out/table6.csv, out/cells.csv, out/differences.svg, out/differences.png\n"
    )
    # Each LEAP cell is 1 and 1.1 points above its pair: 1.05 +- t(0.975, 1) * 0.0707 / sqrt(2).
    assert "| 2 x 6, 4 x 2 | LEAP-CV - CosFace | 2 | **+1.05 (+0.41 .. +1.69)** |" in printed
    numbers = "91.00 ± 1.41 | 86.00 ± 1.41 | 80.00 ± 0.00 | 0.600 ± 0.000 | 0.110 ± 0.000 |"
    assert f"| 2 x 6, 4 x 2 | CosFace | 2 | {numbers}" in printed
    assert (
        "| LEAP-CV | CosFace | leap.start_epoch: None to 1.0, leap.track: True to False, leap.variant: off" in printed
    )
    rows = list(csv.DictReader((here / "out/table6.csv").open()))
    row = next(row for row in rows if (row["method"], row["column"]) == ("leap", "heldout TPR@1e-2"))
    assert (row["seeds"], row["pairs"], row["baseline"], row["unit"]) == ("2", "2", "cosface", "%")
    assert float(row["difference"]) == pytest.approx(1.05)
    each = list(csv.DictReader((here / "out/cells.csv").open()))
    assert len(each) == 4 * 7


def test_a_finished_study_starts_nothing(here, capsys):
    assert table6.main(["study.yaml"]) == 0
    calls(here)
    assert table6.main(["study.yaml"]) == 0
    assert calls(here) == []
    capsys.readouterr()
    assert table6.main(["study.yaml", "--list"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "small/cosface/seed_0: done"


def test_what_is_damaged_or_new_is_made_again_and_nothing_else(here):
    assert table6.main(["study.yaml"]) == 0
    calls(here)
    damaged = here / "out/small/cosface/seed_1/results/heldout.json"
    damaged.write_text(damaged.read_text() + " ")
    assert table6.main(["study.yaml"]) == 0
    assert [line.split()[:3] for line in calls(here)] == [["eval", "openset", "out/small/cosface/seed_1"]]
    change(here / "study.yaml", "evaluations:\n", "evaluations:\n  more: facetrain eval lfw {run} --output {output}\n")
    assert table6.main(["study.yaml", "--only", "small/leap/0"]) == 0
    assert [line.split()[:2] for line in calls(here)] == [["eval", "lfw"]]
    # Without its model a cell cannot be evaluated, and trains again.
    shutil.rmtree(here / "out/small/leap/seed_1/checkpoints")
    assert table6.main(["study.yaml", "--only", "small/leap/1"]) == 0
    assert [line.split()[0] for line in calls(here)] == ["train", "eval", "eval"]


@pytest.mark.parametrize(
    ("file", "before", "after", "line"),
    [
        (
            "base.yaml",
            "epochs: 3",
            "epochs: 4",
            "out/small/cosface/seed_0 was trained with train.epochs = 3, and the study",
        ),
        (
            "study.yaml",
            "people 6",
            "people 7",
            "trained on data of another command, facetrain data demo data/small --pe",
        ),
    ],
)
def test_cells_of_another_recipe_are_not_taken(here, capsys, file, before, after, line):
    assert table6.main(["study.yaml"]) == 0
    change(here / file, before, after)
    calls(here)
    for words in (["study.yaml"], ["study.yaml", "--report-only"]):
        capsys.readouterr()
        assert table6.main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith("table6: error: ")
        assert line in said
        assert said.count("\n") == 1
    assert calls(here) == []


def test_cells_of_another_recipe_are_told_before_others_are_run(here, capsys):
    assert table6.main(["study.yaml", "--only", "small/leap/0"]) == 0
    change(here / "base.yaml", "epochs: 3", "epochs: 4")
    calls(here)
    assert table6.main(["study.yaml", "--only", "small/leap/1"]) == 2
    assert calls(here) == []


def test_what_no_weight_depends_on_may_change(here):
    assert table6.main(["study.yaml"]) == 0
    calls(here)
    change(here / "base.yaml", "data/small/train.rec}", "data/small/train.rec, workers: 0}")
    (here / "out").rename(here / "moved")
    change(here / "study.yaml", "--output {output}", "--output {output}")
    assert table6.main(["study.yaml", "--out", "moved", "--list"]) == 0


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("seeds: [0, 1]", "seeds: [0, 0]", "study.yaml:2: seeds: expected different whole numbers, as [0, 1, 2]"),
        ("seeds: [0, 1]", "seeds: 3", "study.yaml:2: seeds = 3: expected a list in brackets: [a, b]"),
        ("output: out", "outputs: out", "study.yaml:1: outputs: unknown key; valid here: output, seeds,"),
        ("base.yaml", "bas.yaml", "bas.yaml: no such recipe; did you mean base.yaml?"),
        ("baseline: cosface", "baseline: arcface", "study.yaml:12: methods.leap.baseline = arcface: expected another"),
        (
            "variant: vanilla",
            "variant: vanila",
            "study.yaml:12: leap.variant = vanila: expected one of off, vanilla, full",
        ),
        (
            "keys: {leap",
            "keys: {seed: 3, leap",
            "study.yaml:12: keys.seed: the study sets it for each run; leave it out",
        ),
        (
            "--output {output}",
            "--output x",
            "study.yaml:5: evaluations.heldout: expected a command like facetrain eval",
        ),
        (
            "{data}/heldout",
            "{dat}/heldout",
            "study.yaml:5: {dat} stands for nothing here; these do: {run}, {output}, {da",
        ),
        ("facetrain data demo", "rm -rf", "study.yaml:9: data: expected a command like facetrain data demo"),
        ("--output {output}", "--outputs {output}", "study.yaml:5: facetrain eval openset: No such option: --outputs"),
        ("eval openset", "eval opensett", "study.yaml:5: facetrain eval opensett: No such command 'opensett'"),
        ("--people 6", "--people six", "study.yaml:9: facetrain data demo: Invalid value for '--people'"),
        ("people 6", "people '6", "study.yaml:9: cannot be read as a command: no closing quotation"),
        ("  small:", "  sm/all:", "study.yaml:7: settings.sm/all: expected a name that can be a folder's"),
        ("title: CosFace", "titel: CosFace", "study.yaml:11: methods.cosface.titel: unknown key; valid here: title,"),
        (
            "    data: facetrain data demo {data} --people 6",
            "",
            "settings.small: data/small/train.rec is not there: make it",
        ),
        (
            "seeds",
            "columns: [{evaluation: held, value: x}]\nseeds",
            "study.yaml:2: columns: evaluation = held: expected one",
        ),
        (
            "seeds",
            "paper: study.yaml\nseeds",
            "study.yaml:2: paper = study.yaml: expected a .csv with the columns setting",
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_started(here, capsys, before, after, line):
    change(here / "study.yaml", before, after)
    assert table6.main(["study.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("table6: error: ")
    assert said.count("\n") == 1
    assert line in said
    assert calls(here) == []


def test_a_mistake_in_a_recipe_names_its_file_and_line(here, capsys):
    change(here / "base.yaml", "epochs: 3", "epochs: three")
    assert table6.main(["study.yaml"]) == 2
    assert "error: base.yaml:3: train.epochs = three: expected a whole number >= 1" in capsys.readouterr().err


def test_a_failed_cell_does_not_stop_the_others(here, capsys):
    change(here / "study.yaml", "  leap:", "  broken: {keys: {optim: {lr: 7}}}\n  leap:")
    assert table6.main(["study.yaml"]) == 1
    said = capsys.readouterr().err
    assert "table6: failed: small/broken/seed_1: training failed: the loss is nan\n" in said
    assert said.count("table6: failed") == 2
    assert sorted(line.split()[0] for line in calls(here)) == ["data"] + ["eval"] * 4 + ["train"] * 6
    assert "the loss is nan" in (here / "out/small/broken/seed_0/log.txt").read_text()


def test_data_that_cannot_be_made_fail_their_setting_alone(here, capsys):
    other = (
        "  other:\n    keys: {data: {path: data/other/train.rec}}\n    data: facetrain data demo {data} --seed 666\n"
    )
    change(here / "study.yaml", "methods:", other + "methods:")
    assert table6.main(["study.yaml"]) == 1
    assert "table6: failed: other: its data could not be made: exit code 1\n" in capsys.readouterr().err
    assert not (here / "data/other").exists()
    assert sorted(line.split()[0] for line in calls(here)) == ["data"] * 2 + ["eval"] * 4 + ["train"] * 4


def test_data_of_another_command_are_not_taken(here, capsys):
    assert table6.main(["study.yaml", "--only", "small/leap/0"]) == 0
    calls(here)
    change(here / "study.yaml", "people 6", "people 7")
    capsys.readouterr()
    again = ["study.yaml", "--only", "small/cosface/1", "--out", "other"]
    assert table6.main(again) == 2
    line = "data/small/train.rec was made by facetrain data demo data/small --people 6: remove its folder or choose"
    assert line in capsys.readouterr().err
    (here / "data/small/train.rec").write_text("made by hand since")
    assert table6.main(again) == 0
    assert [line.split()[0] for line in calls(here)] == ["train", "eval"]


def test_data_whose_making_was_cut_off_are_made_again(here):
    (here / "data/small").mkdir(parents=True)
    (here / "data/small/train.rec").write_text("")
    (here / "data/small/.train.rec.study.begun").touch()
    assert table6.main(["study.yaml", "--only", "small/leap/1"]) == 0
    assert table6.main(["study.yaml", "--only", "small/leap/0"]) == 0
    assert [line.split()[0] for line in calls(here)] == ["data", "train", "eval", "train", "eval"]


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["small"], ["cosface/seed_0", "leap/seed_0", "cosface/seed_1", "leap/seed_1"]),
        (["small/leap"], ["leap/seed_0", "leap/seed_1"]),
        (["*/*/0"], ["cosface/seed_0", "leap/seed_0"]),
        (["s*/c*/seed_1", "small/leap/0"], ["leap/seed_0", "cosface/seed_1"]),
    ],
)
def test_only_some_cells(here, patterns, names):
    found = table6.chosen(read_study(Path("study.yaml")), patterns)
    assert [cell.name for cell in found] == [f"small/{name}" for name in names]


def test_only_what_there_is(here):
    with pytest.raises(InputError, match="--only small/arcface names no cell; settings: small; methods: cosface, leap"):
        table6.chosen(read_study(Path("study.yaml")), ["small/leap", "small/arcface"])


def test_a_seed_and_not_a_name_tells_cells_apart(here):
    cells = {cell.name: cell for cell in read_study(Path("study.yaml")).cells}
    first, second = (cells[f"small/{method}/seed_1"].config for method in ("cosface", "leap"))
    assert first.seed == second.seed == 1
    same = {"output": first.output, "leap": first.leap}
    assert second.model_copy(update=same) == first
    assert [cell.split("/")[-1] for cell in cells] == ["seed_0", "seed_0", "seed_1", "seed_1"]


def test_the_paper_stands_beside_its_own_settings_only(here, capsys):
    (here / "paper.csv").write_text('# a source\nsetting,method,IJB\n"H5",CosFace,71.5\n"H5",LEAP-CV,72.25\n')
    column = "columns: [{title: at 1e-2, evaluation: heldout, value: TPR@1e-2, paper: IJB}]\npaper: paper.csv\n"
    other = "  other: {keys: {data: {path: data/other/train.rec}}, paper: H5}\n"
    (here / "data/other").mkdir(parents=True)
    (here / "data/other/train.rec").write_text("")
    change(here / "study.yaml", "methods:", other + column + "methods:")
    assert table6.main(["study.yaml", "--only", "*/*/0"]) == 0
    printed = capsys.readouterr().out
    assert "| other | LEAP-CV | 1 | 91.00 [72.25] |" in printed
    assert "| other | LEAP-CV - CosFace | 1 | +1.00 [+0.75] |" in printed
    assert "| 2 x 6, 4 x 2 | LEAP-CV | 1 | 91.00 |" in printed


def test_a_column_that_no_result_has_is_told(here, capsys):
    asked = "columns: [{evaluation: heldout, value: TPR@1e-7}, {evaluation: heldout, value: rank-1}, {evaluation: "
    asked += "heldout, value: angle mean (rad), unit: rad}]\n"
    change(here / "study.yaml", "methods:", asked + "methods:")
    assert table6.main(["study.yaml"]) == 0
    line = "Absent: heldout TPR@1e-7: no result has TPR@1e-7; they have TPR@1e-2, TPR@1e-3, angle mean (rad), rank-1."
    printed = capsys.readouterr().out
    assert line in printed
    assert "| setting | method | seeds | heldout rank-1 | heldout angle mean (rad), rad |" in printed
    assert "| 2 x 6, 4 x 2 | CosFace | 2 | 80.00 ± 0.00 | 0.600 ± 0.000 |" in printed


def test_two_drivers_do_not_share_a_folder(here, capsys):
    with table6._alone(Path("out")):
        assert table6.main(["study.yaml"]) == 2
    assert "out: another table6.py runs there; wait for it or choose another --out" in capsys.readouterr().err


DRIVER = f"""
import sys
sys.path.insert(0, {str(ROOT / "tools")!r})
import study_data, study_run, table6
study_data.argv = study_run.argv = lambda command, nproc=None: [sys.executable, {str(STUB)!r}, *command[1:]]
sys.exit(table6.main(sys.argv[1:]))
"""


def _driver(**more: str) -> subprocess.Popen[str]:
    environment = os.environ | {"STUB_SECONDS": "0.2"} | more
    command = [sys.executable, "-c", DRIVER, "study.yaml", "--jobs", "2"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait_for(condition, what):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen")


def _trained(folder: Path) -> int:
    return sum(path.stat().st_size > 0 for path in (folder / "out").glob("small/*/*/metrics.jsonl"))


def test_a_second_ctrl_c_ends_what_does_not_leave(here):
    change(here / "base.yaml", "epochs: 3", "epochs: 100")
    driver = _driver(STUB_DEAF="1")
    _wait_for(lambda: _trained(here) == 2, "two trainings at once")
    driver.send_signal(signal.SIGINT)
    time.sleep(1.2)
    assert driver.poll() is None
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=30)
    assert driver.returncode == 130
    assert said.endswith("table6: stopped by Ctrl-C\n")
    before = [path.stat().st_size for path in (here / "out").glob("small/*/*/metrics.jsonl")]
    time.sleep(0.5)
    assert before == [path.stat().st_size for path in (here / "out").glob("small/*/*/metrics.jsonl")]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_driver_that_is_stopped_goes_on(here, number):
    change(here / "base.yaml", "epochs: 3", "epochs: 40")
    driver = _driver()
    _wait_for(lambda: _trained(here) == 2, "two trainings at once")
    driver.send_signal(number)
    _, said = driver.communicate(timeout=30)
    assert driver.returncode == (-number if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        assert said.endswith("table6: stopped; the same command goes on\n")
    pids = [line for line in calls(here) if line.startswith("train")]
    assert len(pids) == 2
    sizes = [path.stat().st_size for path in (here / "out").glob("small/*/*/metrics.jsonl")]
    time.sleep(0.5)  # nobody lives on
    assert sizes == [path.stat().st_size for path in (here / "out").glob("small/*/*/metrics.jsonl")]
    assert table6.main(["study.yaml", "--jobs", "2"]) == 0
    resumed = ['"resumed"' in path.read_text() for path in sorted((here / "out").glob("small/*/seed_0/metrics.jsonl"))]
    assert resumed == [True, True]
    assert len(list((here / "out").glob("small/*/*/results/heldout.json"))) == 4
    record = json.loads((here / "out/small/leap/seed_0/cell.json").read_text())
    assert record["trained"]["checkpoint"] == "step_00000040"


REAL = """\
output: out
seeds: [0, 1]
keys:
  model: {width: 4, input_size: 24, embedding_size: 8}
  train: {epochs: 4, batch_size: 16, log_every: 1}
  data: {path: data/train.rec, workers: 0}
  leap: {track: true, head_threshold: 2, sync_interval: 1}
evaluations:
  seen: >-
    facetrain eval openset {run} {data}/seen/train.rec --classes-of {data}/train.rec --head-threshold 2 --no-cache
    --output {output}
settings:
  tiny:
    data: >-
      facetrain data demo {data} --people 12 --head 4 --images-head 12 --images-tail 2 --size 24 --held-out 6
      --held-out-images 5 --seen-images 3 --pairs 40 --workers 1
methods:
  cosface: {}
  twin: {baseline: cosface}
  leap: {baseline: cosface, keys: {leap: {variant: full, track: false, start_epoch: 0}}}
"""


def _weights(run: Path) -> bytes:
    """Those of the backbone, without the file's header, whose metadata come in any order."""
    (file,) = run.glob("checkpoints/*/backbone.safetensors")
    content = file.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


@pytest.mark.slow
def test_real_cells_are_paired_by_seed_alone(here, monkeypatch):
    """A method of another name and nothing else trains the same weights; LEAP does not."""
    monkeypatch.undo()
    monkeypatch.chdir(here)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (here / "study.yaml").write_text(REAL)
    assert table6.main(["study.yaml", "--jobs", "2"]) == 0, (here / "out/tiny/leap/seed_0/log.txt").read_text()
    found = {
        (method, seed): _weights(here / f"out/tiny/{method}/seed_{seed}")
        for method in ("cosface", "twin", "leap")
        for seed in (0, 1)
    }
    assert len(set(found.values())) == 4
    assert all(found["twin", seed] == found["cosface", seed] for seed in (0, 1))
    rows = list(csv.DictReader((here / "out/table6.csv").open()))
    twins = [float(row["difference"]) for row in rows if row["method"] == "twin"]
    assert len(twins) > 10
    assert set(twins) == {0.0}
    columns = {row["column"] for row in rows}
    assert {"seen TPR@1e-1", "seen rank-1", "seen head TPR@1e-1", "seen tail angle mean"} <= columns
    assert {"leap sigma_head", "leap sigma_tail", "leap cloud_share"} <= columns
    assert next(row["unit"] for row in rows if row["column"] == "seen tail angle mean") == "rad"


@pytest.mark.parametrize("setting", ["h5k_t20k", "h5k_t10k", "h3k_t20k", "h3k_t10k"])
@pytest.mark.parametrize("method", ["cosface", "arcface", "leap_cv", "leap_av", "leap_cf", "leap_af"])
def test_the_papers_recipes(setting, method, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = recipe.load(f"configs/paper/{setting}.yaml", [f"configs/paper/{method}.yaml", "output=x"])
    head, tail = (1000 * int(part[1:-1]) for part in setting.split("_"))
    assert config.data.num_classes == head + tail
    assert config.data.path == Path(f"data/{setting}/train.rec")
    assert f"--head {head} --tail {tail} " in Path(f"configs/paper/{setting}.yaml").read_text()
    assert (config.model.name, config.model.embedding_size, config.model.input_size) == ("iresnet18", 512, 112)
    assert (config.train.epochs, config.schedule.name, config.schedule.cycles) == (30, "triangular", 3)
    arc = method in ("arcface", "leap_av", "leap_af")
    margin = config.classifier.margin
    assert (margin.kind, margin.scale, margin.m) == (("arcface", 64, 0.5) if arc else ("cosface", 64, 0.35))
    versions = {"leap_cv": "vanilla", "leap_av": "vanilla", "leap_cf": "full", "leap_af": "full"}
    assert config.leap.variant == versions.get(method, "off")
    assert (config.leap.head_threshold, config.leap.sync_interval) == (5, 5)
    if method in versions:
        assert config.cloud_start == 20


@pytest.mark.parametrize("study", sorted((ROOT / "configs").glob("*/*.yaml")), ids=lambda path: path.name)
def test_the_studies_that_come_along_can_be_read(study, monkeypatch):
    if "\nsettings:" not in study.read_text():
        return
    monkeypatch.chdir(ROOT)
    found = read_study(study)
    assert found.cells
    assert len({cell.config.train.epochs for cell in found.cells}) == 1


def test_the_papers_numbers_are_those_of_the_headers():
    lines = (ROOT / "configs/paper/table6_paper.csv").read_text().splitlines()
    rows = list(csv.DictReader([line for line in lines if not line.startswith("#")]))
    assert len(rows) == 16
    for row in rows:
        numbers = [value for key, value in row.items() if key not in ("setting", "method")]
        file = row["setting"].replace(", ", "_").lower() + ".yaml"
        assert [row["method"], *numbers] in [
            line.removeprefix("#").split() for line in (ROOT / "configs/paper" / file).read_text().splitlines()
        ]
