"""`facetrain train` whose data are cut, deleted, replaced or damaged: a clear end, or stand-ins within the budget."""

import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from file_changes import cut, delete, delete_index, replace
from safetensors.numpy import load_file

from facetrain.data.images import encode_jpeg
from facetrain.data.record_writer import RecordWriter
from facetrain.data.recordio import RecordFile

SIDE, PEOPLE, PHOTOS = 16, 8, 12
RECIPE = """
output: {output}
device: cpu
seed: 3
data: {{path: {rec}, workers: {workers}, max_damaged: {budget}}}
model: {{width: 4, input_size: 16, embedding_size: 8}}
train:
  {{epochs: {epochs}, batch_size: 12, log_every: 2, checkpoint_every: 20, threads: 1, timeout: 60, resume: {resume}}}
"""


@pytest.fixture
def rec(tmp_path):
    path = tmp_path / "set" / "train.rec"
    rng = np.random.default_rng(0)
    with RecordWriter(path, SIDE) as writer:
        for label in range(PEOPLE):
            for _ in range(PHOTOS):
                tiles = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
                writer.write(label, encode_jpeg(np.kron(tiles, np.ones((4, 4, 1), np.uint8))))
    return path


def start(rec, name="run", *, ranks=1, workers=1, epochs=3000, budget=100, resume="never"):
    output = rec.parent.parent / name
    recipe = output.with_suffix(".yaml")
    recipe.write_text(
        RECIPE.format(output=output, rec=rec, workers=workers, epochs=epochs, budget=budget, resume=resume)
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "facetrain", "train", str(recipe), "--nproc", str(ranks)]
    return output, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


def ended(process, seconds=120):
    """(exit code, what it said); never left behind."""
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        raise
    return process.returncode, said


def wait_for_steps(output, process):
    deadline = time.monotonic() + 120
    while not (output / "metrics.jsonl").exists() or (output / "metrics.jsonl").read_text().count("\n") < 3:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.faults
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("change", [cut, delete, delete_index, replace], ids=lambda change: change.__name__)
def test_files_that_change_end_the_run_with_a_line(rec, change, ranks):
    output, process = start(rec, ranks=ranks, workers=1 if change is cut else 0)
    wait_for_steps(output, process)
    change(rec)
    code, said = ended(process)
    assert code in (1, 2), said
    line = r"train\.(rec|idx) (shrank from \d+ to \d+ bytes|disappeared) while it was read; restore "
    assert re.search(line, " ".join(said.split())), said
    for word in ("Traceback", "SIGBUS", "Bus error", "Segmentation"):
        assert word not in said
    assert not (output / "damaged_images.txt").exists()


def damage(rec, images):
    """Spoil the JPEGs of some images; sizes and labels stay."""
    data, opened = bytearray(rec.read_bytes()), RecordFile(rec)
    for i in images:
        at = data.index(bytes(opened.encoded(i)), opened.byte_offset(i))
        data[at : at + 4] = b"\0\0\0\0"
    rec.write_bytes(data)


def weights(output):
    """The tensors of the newest checkpoint."""
    newest = sorted(path for path in (output / "checkpoints").iterdir() if path.is_dir())[-1]
    found = {}
    for file in sorted(newest.rglob("*.safetensors")):
        found |= {f"{file.name}/{key}": value for key, value in load_file(file).items()}
    assert found
    return found


@pytest.mark.faults
def test_damaged_images_within_the_budget(rec):
    """The run ends well; the list, and the weights of a second run, are the same with more workers and after a stop."""
    damage(rec, [2, 30, 31, 77])
    runs = {}
    for name, options in {"one": {"workers": 0}, "two": {"workers": 2}}.items():
        output, process = start(rec, name, epochs=6, **options)
        code, said = ended(process)
        assert code == 0, said
        assert "unreadable images so far, of 100 allowed; see " in said.replace("\n", " ")
        listed = (output / "damaged_images.txt").read_text().splitlines()[1:]
        assert [line.split("\t")[0] for line in listed] == ["2", "30", "31", "77"]
        assert all(re.search(r"\ttrain\.rec record \d+ at byte \d+\tnot a readable JPEG", line) for line in listed)
        runs[name] = weights(output)
    assert all(np.array_equal(value, runs["two"][key]) for key, value in runs["one"].items())
    output, process = start(
        rec, "one", ranks=2, workers=1, epochs=9, resume="auto"
    )  # goes on from there, and on two ranks
    code, said = ended(process)
    assert code == 0, said
    assert "so far, of" not in said  # all four were known
    losses = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1]["step"] == 9 * 8


@pytest.mark.faults
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("images", "budget"), [(range(96), 20), (range(3), 2), ([50], 0)])
def test_more_than_the_budget_ends_every_rank(rec, ranks, images, budget):
    damage(rec, images)
    output, process = start(rec, ranks=ranks, workers=1, budget=budget)
    code, said = ended(process)
    assert code == 1, said
    flat = " ".join(said.split())
    assert re.search(rf"\d+ unreadable images?, and data\.max_damaged allows {budget}: ", flat), said
    assert "Traceback" not in said
    assert len((output / "damaged_images.txt").read_text().splitlines()) - 1 > budget
