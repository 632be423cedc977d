"""Pieces through DCP and back: any cut into rows, any type, any layout; and what does not fit or has holes."""

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import run_ranks
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from facetrain.checkpoints.files import FORMAT, folder_name, manifest_text, verify
from facetrain.checkpoints.piece import Piece
from facetrain.checkpoints.storage import read, stored, write
from facetrain.distributed import background_group
from facetrain.errors import InputError
from facetrain.partition import split

ROWS = 11
ABOUT = {"config": {}, "num_classes": ROWS, "num_images": 100, "fingerprint": "", "ranks": 1}


def _whole() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "classifier.weight": torch.randn((ROWS, 3), generator=generator),
        "classifier.updates": torch.randint(-(2**62), 2**62, (ROWS, 1), generator=generator),
        "leap.angle": torch.randint(-(2**15), 2**15, (ROWS,), dtype=torch.int16, generator=generator),
        "leap.seen": torch.rand(ROWS, generator=generator) < 0.5,
        "leap.centre": torch.randn((ROWS, 2), dtype=torch.float64, generator=generator),
        "leap.none": torch.empty((0, 4)),
        "backbone.conv": torch.randn((4, 3, 2, 2), generator=generator).to(memory_format=torch.channels_last),
        "backbone.count": torch.tensor(2**40),
        "backbone.half": torch.randn(5, generator=generator).bfloat16(),
        "backbone.transposed": torch.randn((3, 4), generator=generator).t(),
    }


def _pieces(whole, start, stop):
    """What a rank with these rows holds, of copies."""
    pieces = {}
    for name, tensor in whole.items():
        if name.startswith("backbone."):
            pieces[name] = Piece(tensor.clone())
        elif len(tensor):
            pieces[name] = Piece(tensor[start:stop].clone(), start, len(tensor))
        else:
            pieces[name] = Piece(tensor.clone(), 0, 0)
    return pieces


def _blank(pieces):
    return {name: Piece(torch.zeros_like(piece.tensor), piece.first, piece.total) for name, piece in pieces.items()}


def _manifest(folder, pieces, files, step=1):
    rows = {name: piece.total for name, piece in pieces.items() if piece.total is not None}
    manifest = {"format": FORMAT, "step": step, **ABOUT, "rows": rows, "files": files}
    (folder / "manifest.json").write_text(manifest_text(manifest))


def _save(world, folder, cuts):
    """Rank r holds rows cuts[r]..cuts[r + 1] - 1; files and a manifest as in a checkpoint."""
    pieces = _pieces(_whole(), cuts[world.rank], cuts[world.rank + 1])
    write(folder, pieces, world, background_group(world, 30), lambda files: _manifest(folder, pieces, files))


def _split_cuts(ranks):
    return [split(ROWS, ranks, rank).start for rank in range(ranks)] + [ROWS]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint by three ranks, of which the second has no rows."""
    path = tmp_path_factory.mktemp("saved") / folder_name(1)
    run_ranks(3, _save, path, [0, 4, 4, ROWS])
    return path


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / folder_name(1))


def _check_rows(path, start, stop):
    whole = _whole()
    pieces = _blank(_pieces(whole, start, stop))
    read(path, pieces)
    for name, expected in _pieces(whole, start, stop).items():
        found = pieces[name].tensor
        assert found.dtype == expected.tensor.dtype
        assert found.stride() == expected.tensor.stride(), name
        assert torch.equal(found, expected.tensor), name


@settings(max_examples=40, deadline=None)
@given(st.integers(0, ROWS), st.integers(0, ROWS))
def test_any_rows_come_back_from_any_cut(saved, one, other):
    _check_rows(saved, min(one, other), max(one, other))


def test_ranks_without_rows_write_no_files_and_nothing_is_pickled(saved):
    verify(saved)
    assert sorted(path.name for path in saved.iterdir()) == [
        "backbone.safetensors",
        "classifier-00000-of-00003.safetensors",
        "classifier-00002-of-00003.safetensors",
        "leap-00000-of-00003.safetensors",
        "leap-00002-of-00003.safetensors",
        "manifest.json",
    ]


def test_dcps_own_reader_understands_the_files(saved):
    """By its public class, as a user without facetrain would."""
    metadata = HuggingFaceStorageReader(str(saved)).read_metadata()
    whole = _whole()
    del whole["leap.none"]
    assert {name: tuple(s.size) for name, s in metadata.state_dict_metadata.items()} == {
        name: tuple(tensor.shape) for name, tensor in whole.items()
    }
    parts = [load_file(path)["leap.seen"] for path in sorted(saved.glob("leap-*"))]
    assert torch.equal(torch.cat(parts), whole["leap.seen"])


def test_files_can_be_read_by_whoever_may_read_the_folder(saved):
    modes = {path.stat().st_mode for path in saved.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize(
    ("name", "piece", "message"),
    [
        (
            "classifier.weight",
            Piece(torch.zeros((12, 3)), 0, 12),
            "classifier.weight is float32 11 x 3 there and float32 12 x 3 here; the number of people, the model "
            "section or optim.name was different when it was made",
        ),
        ("classifier.weight", Piece(torch.zeros((ROWS, 4)), 0, ROWS), "float32 11 x 3 there and float32 11 x 4 here"),
        ("classifier.weight", Piece(torch.zeros((ROWS, 3)).double(), 0, ROWS), "and float64 11 x 3 here"),
        (
            "classifier.exp_avg",
            Piece(torch.zeros((ROWS, 3)), 0, ROWS),
            "classifier.exp_avg is absent there and float32",
        ),
        ("backbone.count", Piece(torch.zeros(1).long()), "backbone.count is int64 scalar there and int64 1 here"),
        ("backbone.half", None, "backbone.half is bfloat16 5 there and absent here; the model section was different"),
        ("leap.none", Piece(torch.zeros((2, 4)), 0, 2), "leap.none is float32 0 x 4 there and float32 2 x 4 here"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(saved, name, piece, message):
    pieces = _pieces(_whole(), 0, ROWS) | ({} if piece is None else {name: piece})
    if piece is None:
        del pieces[name]
    with pytest.raises(InputError) as caught:
        read(saved, pieces)
    assert f"checkpoint {saved} does not fit this run: " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_group_that_the_run_has_no_use_for_is_left_alone(saved):
    read(saved, {name: piece for name, piece in _pieces(_whole(), 0, 3).items() if not name.startswith("leap.")})


def _forget(path, gone):
    """The checkpoint as if a file had never been part of it, checksums and all."""
    (path / gone).unlink()
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["files"][gone]
    (path / "manifest.json").write_text(manifest_text(manifest))
    verify(path)


@pytest.mark.parametrize(("gone", "hole"), [("00000", 0), ("00002", 4)])
def test_a_hole_is_found_even_where_the_manifest_knows_nothing_of_it(copied, gone, hole):
    _forget(copied, f"leap-{gone}-of-00003.safetensors")
    with pytest.raises(InputError, match=rf"is damaged: row {hole} of leap\.angle is in no file"):
        read(copied, _pieces(_whole(), 0, ROWS))
    kept = range(4, ROWS) if hole == 0 else range(4)
    _check_rows(copied, kept.start, kept.stop)


def test_rows_that_are_there_twice_are_refused(copied):
    shutil.copy(copied / "leap-00000-of-00003.safetensors", copied / "leap-00001-of-00003.safetensors")
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["files"]["leap-00001-of-00003.safetensors"] = manifest["files"]["leap-00000-of-00003.safetensors"]
    (copied / "manifest.json").write_text(manifest_text(manifest))
    with pytest.raises(InputError, match=r"row 0 of leap\.angle is in no file, or in two"):
        read(copied, _pieces(_whole(), 0, ROWS))


def test_files_that_are_missing_strange_or_no_safetensors_are_named(copied):
    file = copied / "leap-00002-of-00003.safetensors"
    content = file.read_bytes()
    file.unlink()
    with pytest.raises(InputError, match=r"leap-00002-of-00003\.safetensors is missing or does not belong there"):
        stored(copied)
    file.write_bytes(content[:20])
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        read(copied, _pieces(_whole(), 0, ROWS))
    save_file({"leap.angle": torch.zeros(1)}, file, {"DCP_SHARDING_INFO": "{}"})
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        read(copied, _pieces(_whole(), 0, ROWS))


def test_other_safetensors_in_the_folder_are_never_read(copied):
    save_file({"backbone.count": torch.tensor(0)}, copied / "another.safetensors")
    with pytest.raises(InputError, match=r"another\.safetensors is missing or does not belong there"):
        read(copied, _pieces(_whole(), 0, ROWS))
    with pytest.raises(InputError, match=r"holds another\.safetensors, which its manifest\.json does not know"):
        verify(copied)


def _fail(world, folder, failing):
    pieces = _pieces(_whole(), *_split_cuts(2)[world.rank : world.rank + 2])

    def refuse(*_):
        raise OSError(28, "No space left on device", str(folder / "some.safetensors"))

    from facetrain.checkpoints import storage

    if world.rank == failing:
        storage.write_file = refuse
    group = background_group(world, 30)
    try:
        write(folder, pieces, world, group, refuse if failing == "finish" else lambda files: None)
    except OSError as error:
        return error.errno, error.filename
    return None


@pytest.mark.parametrize("failing", [0, 1, "finish"])
def test_every_rank_hears_of_the_failure_of_one(tmp_path, failing):
    expected = (28, str(tmp_path / "x" / "some.safetensors"))
    assert run_ranks(2, _fail, tmp_path / "x", failing) == [expected, expected]


def test_the_whole_says_shape_and_bytes():
    piece = Piece(torch.zeros((2, 3), dtype=torch.int16), 4, 10)
    assert (piece.shape, piece.nbytes, piece.rows) == ((10, 3), 60, range(4, 6))
    assert (Piece(torch.tensor(1.0)).shape, Piece(torch.tensor(1.0)).nbytes) == ((), 4)


def test_the_files_say_where_their_rows_begin(saved):
    with safe_open(saved / "classifier-00002-of-00003.safetensors", "pt") as file:
        assert json.loads(file.metadata()["DCP_SHARDING_INFO"])["classifier.weight"] == {"saved_offsets": [4, 0]}
