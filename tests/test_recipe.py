from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facetrain import recipe
from facetrain.config import Config, DataConfig, EvaluateConfig, OptimConfig
from facetrain.errors import InputError
from facetrain.strictyaml import scalar

BASE = "output: runs/a\ndata:\n  path: x\n"  # three lines: what a test appends starts on line 4


def load(folder: Path, text: str, *overrides: str) -> Config:
    path = folder / "r.yaml"
    path.write_text(text)
    return recipe.load(path, overrides)


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load(folder, text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) <= 180
    return message.replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[
            ("5e-4", 5e-4),
            ("1E5", 100_000),
            ("1e+2", 100),
            ("1_000", 1000),
            (".5", 0.5),
            ("-2.", -2.0),
            ("+3", 3),
            ("0", 0),
        ],
        *[("true", True), ("False", False), ("null", None), ("~", None), ("", None)],
        *[(text, text) for text in ("no", "yes", "on", "off", "y", "010", "0x10", "0o7", "12:30:45", "2026-01-02")],
        *[(text, text) for text in (".", "+", "-", "e5", "-.e5", "1e", "1__0", "_1", "1_", "nan", "inf", "٣", "1 2")],
        (".inf", float("inf")),
        ("9" * 5000, "9" * 5000),  # Python refuses to convert it
    ],
)
def test_scalars_mean_what_people_expect(text, value):
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_numbers_of_files_and_overrides(tmp_path):
    text = BASE + "optim:\n  lr: 5e-4\ntrain: {checkpoint_every: 1E5, epochs: 30}\n"
    config = load(tmp_path, text, "optim.weight_decay=1e-4", "train.epochs=7", "optim.clip_norm=1", "seed=1_000")
    assert config.optim.lr == 5e-4
    assert config.optim.weight_decay == 1e-4
    assert config.optim.clip_norm == 1.0
    assert (config.train.checkpoint_every, config.train.epochs, config.seed) == (100_000, 7, 1000)


def test_overrides_take_lists_quotes_null_and_whole_sections(tmp_path):
    config = load(
        tmp_path,
        BASE + "optim: {clip_norm: 5, lr: 3}\n",
        "evaluate.sets=[a b.bin, 7]",
        "optim.clip_norm=null",
        "data={workers: 0}",
        "output='1e5'",
        "data.path=a: b #1",
    )
    assert config.evaluate.sets == (Path("a b.bin"), Path("7"))
    assert config.optim.clip_norm is None
    assert config.optim.lr == 3
    assert (config.data.workers, config.data.path, config.output) == (0, Path("a: b #1"), Path("1e5"))


def test_a_folder_may_be_called_by_a_number(tmp_path):
    config = load(tmp_path, "output: 1e5\ndata: {path: 010}\n")
    assert (config.output, config.data.path) == (Path("1e5"), Path("010"))


MISTAKES = [
    # appended to BASE, or given on the command line; what the one line says
    ("train:\n  epochz: 3", "r.yaml:5: train.epochz = 3: unknown key; did you mean train.epochs?"),
    ("train:\n  epochs: 3\n  epochs: 4", "r.yaml:6: train.epochs is given twice (first on line 5); keep one of them"),
    ("optim:\n  betas: [0.5, 0.9]", "r.yaml:5: optim: betas has no effect without name: adamw; leave it out"),
    ("schedule:\n  power: 3", "r.yaml:5: schedule: power has no effect without name: polynomial; leave it out"),
    ("lr: 0.1", "r.yaml:4: lr = 0.1: unknown key; did you mean optim.lr?"),
    ("zzz: 0.1", "r.yaml:4: zzz = 0.1: unknown key; valid here: output, seed, device,"),
    ("optim.lr: 3", "r.yaml:4: optim.lr = 3: unknown key; write lr on a line of its own, indented below optim"),
    ("optim:\n  lr: fast", "r.yaml:5: optim.lr = fast: expected a number > 0"),
    ("optim:\n  lr: .inf", "r.yaml:5: optim.lr = .inf: expected a number > 0, finite"),
    ("optim:\n  name: sdg", "r.yaml:5: optim.name = sdg: expected one of sgd, adamw; did you mean sgd?"),
    ("optim:\n", "r.yaml:4: optim = null: expected keys of its own below it: name, lr,"),
    ("optim: [1]", "r.yaml:4: optim = [1]: expected keys of its own below it: name, lr,"),
    ("optim:\n  betas:\n  - 0.9", "r.yaml:5: optim.betas = [0.9]: expected a list of 2, each a number >= 0 and < 1"),
    ("optim:\n  betas:\n  - 0.9\n  - 2", "r.yaml:7: optim.betas[1] = 2: expected a number >= 0 and < 1"),
    ("train:\n  tf32: no", "r.yaml:5: train.tf32 = no: expected true or false"),
    ("train:\n  tf32: 1", "r.yaml:5: train.tf32 = 1: expected true or false"),
    ("train:\n  epochs: true", "r.yaml:5: train.epochs = true: expected a whole number >= 1"),
    ("train:\n  epochs: 2.0", "r.yaml:5: train.epochs = 2.0: expected a whole number >= 1"),
    ("train:\n  epochs: '3'", 'r.yaml:5: train.epochs = "3": expected a whole number >= 1; remove the quotes'),
    ("train:\n  threads: 0", "r.yaml:5: train.threads = 0: expected a whole number >= 1 or null"),
    (
        "seed: 010",
        "r.yaml:4: seed = 010: expected a whole number >= 0 and < 9223372036854775808; remove the leading zeros",
    ),
    ("evaluate: {sets: a.bin}", "r.yaml:4: evaluate.sets = a.bin: expected a list of paths in brackets: [a, b]"),
    ("train:\n  accumulation: 3", "r.yaml:5: train.batch_size 512 must be a multiple of train.accumulation 3"),
    ("model:\n  cuda_graph: true", "r.yaml:5: model: cuda_graph has no effect without compile: true; leave it out"),
    (
        "model: {compile: true, cuda_graph: true}\ntrain: {accumulation: 2}",
        "r.yaml:4: model.cuda_graph needs train.accumulation: 1; leave one of them out",
    ),
    (
        "classifier:\n  margin:\n    kind: combined\n    m: .3",
        "r.yaml:7: classifier.margin: m belongs to cosface and arcface; with kind: combined set m1, m2, m3",
    ),
    ("optim:\n  lr: fast\nseed: -1", "r.yaml:5: optim.lr = fast: expected a number > 0 (and 1 more)"),
    ("a: &x 1", "r.yaml:4: cannot be read as YAML: anchors and aliases (& and *) are not used in recipes; use extends"),
    ("a: !!python/object/apply:os.system [x]", "r.yaml:4: cannot be read as YAML: tags (!) are not used in recipes"),
    (
        "\tseed: 1",
        "r.yaml:4: cannot be read as YAML: found character '\\t' that cannot start any token; indent with spaces",
    ),
    (
        "---\nseed: 1",
        "r.yaml:4: cannot be read as YAML: expected a single document in the stream but found another document",
    ),
    ("? [a]\n: 1", "r.yaml:4: a key must be a word, not a list or a section"),
    ("a: " + "[" * 30, "r.yaml:4: cannot be read as YAML: too deeply nested for a recipe"),
]


@pytest.mark.parametrize(("text", "line"), MISTAKES, ids=[line[:40] for _, line in MISTAKES])
def test_a_mistake_in_a_file_is_one_line_with_its_place(tmp_path, text, line):
    message = refusal(tmp_path, BASE + text + "\n")
    assert message == line or (line.endswith(",") and message.startswith(line))


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optim.lr=fast", "optim.lr = fast: expected a number > 0"),
        ("optim.lr='3'", 'optim.lr = "3": expected a number > 0; remove the quotes'),
        ("optim.lr.x=5", 'optim.lr = {"x": 5}: expected a number > 0'),
        ("train.accumulation=3", "train.batch_size 512 must be a multiple of train.accumulation 3"),
        ("optim", "'optim': expected key.sub=value, for example optim.lr=0.1, or a recipe, *.yaml"),
        ("=3", "'=3': expected key.sub=value, for example optim.lr=0.1, or a recipe, *.yaml"),
        ("optim={lr: 1, lr: 2}", "lr is given twice; keep one of them"),
        ("optim={lr: 1", "cannot be read as YAML: expected ',' or '}', but got '<stream end>'"),
        ("output=", "output = null: expected a path"),
        ("output=\udcff", "output: the value is not UTF-8 text"),
    ],
)
def test_a_mistake_on_the_command_line_names_it(tmp_path, override, line):
    assert refusal(tmp_path, BASE, override) == f"command line: {line}"


def test_an_override_given_twice(tmp_path):
    assert refusal(tmp_path, BASE, "seed=1", "seed=2") == "command line: seed is given twice; keep one of them"


def test_missing_keys_say_what_they_are_for(tmp_path):
    message = refusal(tmp_path, "seed: 1\n", "output=x")
    assert message.startswith("r.yaml: data.path is missing; set it in the recipe or as data.path=...: a .rec file")
    assert refusal(tmp_path, "\n\ndata:\n  workers: 1\n", "output=x").startswith("r.yaml:3: data.path is missing")
    assert "and 1 more" in refusal(tmp_path, "")
    assert refusal(tmp_path, "- a\n") == "r.yaml:1: expected lines of the form key: value"


def test_long_paths_and_values_leave_room_for_what_is_expected(tmp_path):
    folder = tmp_path / ("d" * 150)
    folder.mkdir()
    message = refusal(folder, BASE + f"optim: {{lr: {'x' * 500}}}\n")
    assert "r.yaml:4: optim.lr = xxx" in message
    assert message.endswith("expected a number > 0")


def test_what_is_no_recipe(tmp_path):
    (tmp_path / "demo.yaml").write_text(BASE)
    for name, content, reason in [
        ("demos.yaml", None, f"no such recipe; did you mean {tmp_path}/demo.yaml?"),
        ("x.rec", b"\xff\xfe\x00", "is not a text file; expected a recipe, YAML in UTF-8"),
        ("big", b"#" * (1 << 17) + b"\n", "is larger than 128 KiB; expected a recipe, a small YAML file"),
        (".", None, "Is a directory; expected a recipe, a YAML file"),
    ]:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as caught:
            recipe.load(tmp_path / name)
        assert str(caught.value).endswith(reason[:60]) or reason in str(caught.value)


def test_extends_merges_sections_and_blames_the_right_file(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "base.yaml").write_text(BASE + "optim:\n  lr: 0.2\n  momentum: 0.5\nevaluate: {sets: [a, b]}\n")
    (tmp_path / "sub" / "mid.yaml").write_text("extends: ../base.yaml\noptim: {lr: 0.3}\n")
    config = load(tmp_path, "extends: sub/mid.yaml\nevaluate: {sets: [c]}\n", "optim.weight_decay=0")
    assert (config.optim.lr, config.optim.momentum, config.optim.weight_decay) == (0.3, 0.5, 0)
    assert config.evaluate.sets == (Path("c"),)

    (tmp_path / "base.yaml").write_text(BASE + "optim:\n  momentum: 5\n")
    message = refusal(tmp_path, "extends: base.yaml\noptim: {lr: 0.3}\n")
    assert message.endswith("/base.yaml:5: optim.momentum = 5: expected a number >= 0 and < 1")


def test_recipes_laid_over_one_another(tmp_path):
    first, second, third = (str(tmp_path / name) for name in ("first.yml", "second.YAML", "third.yaml"))
    Path(first).write_text("optim: {lr: 0.3, momentum: 0.5}\nevaluate: {sets: [c]}\n")
    (tmp_path / "under.yaml").write_text("optim: {weight_decay: 1}\nseed: 5\n")
    Path(second).write_text("extends: under.yaml\noptim: {lr: 0.4}\n")
    Path(third).write_text("\n")
    text = BASE + "optim: {lr: 0.2, clip_norm: 7}\nevaluate: {sets: [a, b]}\nseed: 3\n"
    config = load(tmp_path, text, first, "optim.momentum=0.6", second, third)
    assert config.optim == OptimConfig(lr=0.4, momentum=0.6, weight_decay=1, clip_norm=7)
    assert (config.seed, config.evaluate.sets, config.data.path) == (5, (Path("c"),), Path("x"))
    assert load(tmp_path, text, second, first).optim.lr == 0.3


@pytest.mark.parametrize(
    ("top", "overrides", "line"),
    [
        ("\noptim:\n  lr: fast", [], "top.yaml:3: optim.lr = fast: expected a number > 0"),
        ("optim:\n  lrr: 1", [], "top.yaml:2: optim.lrr = 1: unknown key; did you mean optim.lr?"),
        ("seed: 1", ["seed=x"], "command line: seed = x: expected a whole number >= 0 and < 9223372036854775808"),
        ("seed: 1", ["data=null"], "command line: data = null: expected keys of its own below it: path,"),
        ("train: {accumulation: 3}", [], "top.yaml:1: train.batch_size 512 must be a multiple of train.accumulation 3"),
        ("train: 3", [], "top.yaml:1: train = 3: expected keys of its own below it: epochs,"),
        ("extends: r.yaml\nextends: r.yaml", [], "top.yaml:2: extends is given twice (first on line 1); keep one"),
        ("schedule:\n  power: 3", [], "top.yaml:2: schedule: power has no effect without name: polynomial;"),
        ("seed: 1", ["tpo.yaml"], "tpo.yaml: no such recipe"),
    ],
)
def test_a_mistake_in_a_recipe_laid_over_names_its_file(tmp_path, top, overrides, line):
    (tmp_path / "top.yaml").write_text(top + "\n")
    assert line in refusal(tmp_path, BASE, str(tmp_path / "top.yaml"), *overrides)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("r.yaml", "leads back to this recipe; remove one of the two"),
        ("there.yaml", "leads back to this recipe; remove one of the two"),
        ("nowhere.yaml", "no such file; the path is relative to r.yaml"),
        ("[a]", "expected the path of one recipe"),
    ],
)
def test_extends_that_leads_nowhere(tmp_path, value, reason):
    (tmp_path / "there.yaml").write_text("extends: r.yaml\n")
    message = refusal(tmp_path, f"extends: {value}\n" + BASE)
    assert message.endswith(reason)
    assert ".yaml:1: extends" in message


texts = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1).filter(
    lambda s: "/" not in s and s != "." and not s.startswith("~")
)


@given(
    st.builds(
        Config,
        output=texts.map(Path),
        seed=st.integers(0, 2**63 - 1),
        data=st.builds(DataConfig, path=st.one_of(texts, st.floats(allow_nan=False).map(str)).map(Path)),
        optim=st.builds(
            OptimConfig,
            name=st.just("adamw"),
            lr=st.floats(1e-300, 1e300),
            betas=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2),
        ),
        evaluate=st.builds(EvaluateConfig, sets=st.lists(texts.map(Path), max_size=2).map(tuple)),
    )
)
def test_the_dump_reads_back_to_an_equal_config(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("dump") / "r.yaml"
    path.write_text(recipe.dump(config), encoding="utf-8")
    assert recipe.load(path) == config


def test_home_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load(tmp_path, "output: ~/runs\ndata:\n  path: ~/train.rec\n")
    assert config.output == tmp_path / "runs"
    assert config.data.path == tmp_path / "train.rec"
    assert "names a home folder that does not exist" in refusal(tmp_path, "output: ~nobody-of-that-name/runs\n")
