"""Checkpoint folders: what a manifest may say, which checkpoints stay, what is tidied up."""

import json
import os

import pytest
import small_checkpoints
from small_checkpoints import ABOUT, found, state

from facetrain.checkpoints.backbones import find
from facetrain.checkpoints.files import listed, manifest_text, newest_good, read_manifest, tidy, verify
from facetrain.checkpoints.writer import Writer
from facetrain.distributed import World
from facetrain.errors import InputError


@pytest.fixture
def path(tmp_path):
    """A checkpoint of step 1."""
    small_checkpoints.write(tmp_path, 1)
    return tmp_path / "step_00000001"


def _rewrite(path, change):
    """Another manifest with the right checksum, as whoever means harm would make it."""
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(manifest_text(manifest))


NAMES = [
    *("../step_00000002/backbone.safetensors", "../backbone.safetensors", "/etc/passwd", "/tmp/a.safetensors", ".."),
    *("a/b.safetensors", "a\\b.safetensors", "a\0.safetensors", "\0", "", ".", "~/a.safetensors", "C:a.safetensors"),
    *(
        "manifest.json",
        "a.pt",
        "a.pickle",
        ".metadata",
        ".a.safetensors",
        "a.safetensors\n",
        "\N{FULLWIDTH FULL STOP}.safetensors",
    ),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_that_names_anything_but_a_file_beside_it_is_refused(path, name):
    _rewrite(path, lambda manifest: manifest["files"].update({name: {"bytes": 1, "sha256": "0"}}))
    with pytest.raises(InputError, match=r"manifest\.json is damaged"):
        verify(path)
    assert newest_good(path.parent) == (None, [f"{path / 'manifest.json'} is damaged; take an older checkpoint"])


def test_links_that_lead_out_are_not_followed(path, tmp_path):
    outside = tmp_path / "outside.safetensors"
    os.replace(path / "backbone.safetensors", outside)
    (path / "backbone.safetensors").symlink_to(outside)
    with pytest.raises(InputError, match=r"backbone\.safetensors is a link to a place outside of it"):
        verify(path)
    with pytest.raises(InputError, match="is a link"):
        find(path)


def test_a_linked_run_folder_is_as_good_as_any(path, tmp_path):
    (tmp_path / "link").symlink_to(path)
    verify(tmp_path / "link")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(step="1"),
        lambda m: m.update(step=2),
        lambda m: m.update(files=[]),
        lambda m: m.update(rows={"leap.pending": "3"}),
        lambda m: m.update(rows=[]),
        lambda m: m.pop("rows"),
        lambda m: m.pop("fingerprint"),
        lambda m: m["files"].update({"a.safetensors": 3}),
        lambda m: m["files"].update({"a.safetensors": {"bytes": "1", "sha256": "0"}}),
        lambda m: m["files"].update({"a.safetensors": {"bytes": 1}}),
    ],
)
def test_a_manifest_with_a_right_checksum_and_wrong_content_is_damaged(path, change):
    _rewrite(path, change)
    with pytest.raises(InputError, match=r"manifest\.json is damaged; take an older checkpoint"):
        read_manifest(path)


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"\xff\xfe", b"null", b"3", b'{"format": {}}'])
def test_a_manifest_that_is_none(path, content):
    (path / "manifest.json").write_bytes(content)
    with pytest.raises(InputError):
        read_manifest(path)


@pytest.mark.parametrize("written_as", [1, 3, "2"])
def test_another_format_is_told_from_damage(path, written_as):
    (path / "manifest.json").write_text(json.dumps({"format": written_as, "files": {}}))
    message = f"has format {written_as}, this facetrain reads format 2 only: go on with the facetrain that wrote it"
    with pytest.raises(InputError, match=message):
        find(path.parent)


def test_a_pickle_in_the_folder_is_not_looked_at(path):
    (path / ".metadata").write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    assert found(path.parent) == 1


@pytest.mark.parametrize(
    ("keep", "best", "stay"),
    [(1, None, [6]), (2, None, [5, 6]), (4, None, [3, 4, 5, 6]), (2, 3, [3, 5, 6]), (1, 6, [6]), (1, 1, [1, 6])],
)
def test_the_newest_and_the_best_stay(tmp_path, keep, best, stay):
    writer = Writer(tmp_path, World(), keep)
    for step in range(1, 7):
        writer.save(step, state(step, World()), ABOUT, best if best is not None and best <= step else None)
        assert writer.wait() is None
    assert [int(path.name[-8:]) for path in listed(tmp_path)] == stay
    assert found(tmp_path) == 6


def test_tidying_touches_nothing_else(path):
    folder = path.parent
    others = [".hidden", ".step_notes.txt", "step_notes", "damaged_step_00000001", "notes.writing"]
    for name in others:
        (folder / name).mkdir()
    for name in (".step_00000005.writing", ".step_00000004.pruned", ".step_00000001.replaced"):
        (folder / name).mkdir()
        (folder / name / "backbone.safetensors").touch()
    tidy(folder)
    assert {entry.name for entry in folder.iterdir()} == {*others, path.name}
    tidy(folder / "missing")
