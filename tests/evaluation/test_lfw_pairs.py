"""LFW's own list of pairs: read as it stands, and every way in which it can be wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from embedding_toys import Photos

from facetrain.errors import InputError
from facetrain.evaluation.lfw_pairs import read_official_pairs

TOOL = Path(__file__).parents[2] / "tools" / "make_lfw_fixture.py"
HALF = 3
NAMES = ["Abdel_Nasser", "José_María", "Zoe", "Nicole_O'Brien"]


def official(root, half=HALF, suffix=".jpg"):
    """(list, folder, lines) of a made-up LFW: person p has photos 1..4, and a list of 10 x 2 x ``half`` pairs."""
    rng = np.random.default_rng(0)
    folder = root / "lfw"
    for name, file in zip([n for n in NAMES for _ in range(4)], range(16), strict=True):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{name}_{file % 4 + 1:04d}{suffix}").write_bytes(Photos(16).files[file])
    lines = [f"10\t{half}"]
    for _ in range(10):
        for _ in range(half):
            one, two = rng.choice(4, 2, replace=False) + 1
            lines.append(f"{NAMES[rng.integers(4)]}\t{one}\t{two}")
        for _ in range(half):
            (a, b), (one, two) = rng.choice(4, 2, replace=False), rng.integers(1, 5, 2)
            lines.append(f"{NAMES[a]}\t{one}\t{NAMES[b]}\t{two}")
    (root / "pairs.txt").write_text("\n".join(lines) + "\n")
    return root / "pairs.txt", folder, lines


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_the_list_is_read_as_it_stands(tmp_path, suffix):
    path, folder, lines = official(tmp_path, suffix=suffix)
    found = read_official_pairs(path, folder)
    expected = []
    for line in lines[1:]:
        words = line.split("\t")
        second = words[0] if len(words) == 3 else words[2]
        expected += [f"{name}/{name}_000{n}{suffix}" for name, n in ((words[0], words[1]), (second, words[-1]))]
    assert found.files == expected
    assert found.same.tolist() == [len(line.split("\t")) == 3 for line in lines[1:]]
    assert [sorted(NAMES)[person] for person in found.people] == [file.split("/")[0] for file in expected]
    photos, row = found.distinct()
    assert [photos.where(i) for i in row] == [found.photos.where(i) for i in range(len(expected))]
    assert len(photos) == len(set(expected)) < len(expected)
    assert [photos.labels[i] for i in row] == found.people.tolist()


def test_the_fixture_is_such_a_list(tmp_path):
    command = [sys.executable, TOOL, tmp_path / "LFW", "--people", "5", "--photos", "3", "--pairs", "2", "--size", "24"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said == f"{tmp_path / 'LFW'}: 15 photos of 5 people, 40 pairs\n"
    found = read_official_pairs(tmp_path / "LFW" / "pairs.txt", tmp_path / "LFW" / "lfw")
    assert found.same.tolist() == [True, True, False, False] * 10
    assert len(set(found.people.tolist())) == 5
    assert all(found.files[i] != found.files[i + 1] for i in range(0, 80, 2))
    pixels = np.empty((2, 24, 24, 3), np.uint8)
    for i in range(2):
        found.photos.decode(i, pixels[i])
    assert (pixels[0] != pixels[1]).any()
    again = subprocess.run(command, capture_output=True, text=True)
    assert (again.returncode, "LFW is not empty" in again.stderr) == (2, True)


def test_blanks_a_byte_order_mark_and_windows_line_ends_are_taken(tmp_path):
    path, folder, lines = official(tmp_path)
    whole = read_official_pairs(path, folder)
    path.write_bytes("\ufeff".encode() + "\r\n".join(line.replace("\t", " ") for line in [*lines, "", " "]).encode())
    assert read_official_pairs(path, folder).files == whole.files


def _line(number, text):
    return lambda lines: [*lines[: number - 1], text, *lines[number:]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [], r":1: '' are not ten folds and their pairs; expected LFW's pairs\.txt"),
        (_line(1, "1100"), r":1: '1100' are not ten folds"),
        (_line(1, "5\t6"), r":1: '5 6' are not ten folds"),
        (_line(1, "10\t0"), r":1: '10 0' are not ten folds"),
        (_line(1, "10\t300"), r" holds 60 pairs and its first line promises 10 x 2 x 300 = 6000; take the whole"),
        (lambda lines: lines[:-1], r" holds 59 pairs and its first line promises 10 x 2 x 3 = 60"),
        (lambda lines: lines[:1] + lines[4:7] + lines[1:4] + lines[7:],
         r":2: 4 columns where a genuine one, NAME 1 2, is expected: fold 1 has 3 genuine pairs, then 3 impostor ones"),
        (_line(11, "Zoe\t1\t2"), r":11: 3 columns where an impostor one, NAME 1 NAME 1, is expected: fold 2 has"),
        (_line(3, ""), r":3: 0 columns where a genuine one"),
        (_line(3, "../../etc\t1\t2"), r":3: '\.\./\.\./etc' is not a person's name"),
        (_line(3, "..\t1\t2"), r":3: '\.\.' is not a person's name"),
        (_line(3, "/etc\t1\t2"), r":3: '/etc' is not a person's name"),
        (_line(3, "a\\b\t1\t2"), r":3: .* is not a person's name"),
        (_line(3, "a\0b\t1\t2"), r":3: .* is not a person's name"),
        (_line(3, "x" * 4000 + "\t1\t2"), r":3: 'x{40}' is not a person's name"),
        (_line(3, "\t1\t2\t3"), ":3: 4 columns where a genuine one"),
        (_line(3, "Zoe\t1\t-2"), r":3: '-2' is not the number of a photo"),
        (_line(3, "Zoe\t1\t../2"), r":3: '\.\./2' is not the number of a photo"),
        (_line(3, "Zoe\t1\t²"), r":3: '²' is not the number of a photo"),
        (_line(5, "Zoe\t1\tZoe\t2"), r":5: an impostor pair of two photos of Zoe; take the original list"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(tmp_path, change, message):
    path, folder, lines = official(tmp_path)
    path.write_text("\n".join(change(lines)))
    with pytest.raises(InputError, match=f"pairs.txt{message}") as caught:
        read_official_pairs(path, folder)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_missing_photos_folders_and_lists_are_named(tmp_path):
    path, folder, _ = official(tmp_path)
    (folder / "Zoe" / "Zoe_0002.jpg").unlink()
    with pytest.raises(InputError, match=r"1 of \d+ photos are not in .*lfw, the first: Zoe/Zoe_0002\.jpg \(pairs\.t"):
        read_official_pairs(path, folder)
    for file in folder.rglob("*.jpg"):
        file.unlink()
    with pytest.raises(InputError, match=r"(\d+) of \1 photos are not in .*; expected NAME/NAME_0001\.jpg"):
        read_official_pairs(path, folder)
    with pytest.raises(InputError, match=r"is not a folder; expected LFW's photos, nowhere/NAME/NAME_0001\.jpg"):
        read_official_pairs(path, tmp_path / "nowhere")
    for bad in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(InputError, match=r"pair list .* cannot be read: (No such file|Is a directory)"):
            read_official_pairs(bad, folder)
    path.write_bytes(b"10\t3\n\xff\xfe")
    with pytest.raises(InputError, match="it is not UTF-8 text"):
        read_official_pairs(path, folder)
