"""Pair sets: every way such files were written is read, everything else is refused in one line."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from sklearn.model_selection import KFold
from sklearn.preprocessing import normalize

from facetrain.data.pairs_file import write_bin
from facetrain.errors import InputError
from facetrain.evaluation.pairs import DistinctImages, PairSet, read_bin, read_verification, verify

IMAGES = [bytes([n % 251, 128 + n % 100]) * (n + 1) for n in range(40)]
SAME = [n % 3 == 0 for n in range(20)]


def _check(path, thing):
    path.write_bytes(thing if isinstance(thing, bytes) else pickle.dumps(thing))
    read = read_bin(path)
    assert [read.encoded(i) for i in range(len(read))] == IMAGES
    assert read.same.tolist() == SAME
    return read


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "images",
    [IMAGES, [bytearray(x) for x in IMAGES], [np.frombuffer(x, np.uint8) for x in IMAGES]],
    ids=["bytes", "bytearray", "array"],
)
@pytest.mark.parametrize(
    "same",
    [SAME, np.array(SAME), [np.bool_(x) for x in SAME], [int(x) for x in SAME], np.array(SAME, ">i4"), tuple(SAME)],
    ids=["list", "array", "scalars", "ints", "big-endian", "tuple"],
)
def test_every_protocol_and_kind(tmp_path, protocol, images, same):
    read = _check(tmp_path / "lfw.bin", pickle.dumps((images, same), protocol))
    assert read.name == "lfw"
    assert read.where(7) == "lfw image 7 (pair 3)"


def test_python_2_strings_and_numpy_names(tmp_path):
    def short(text):
        return b"U" + bytes([len(text)]) + text

    images = b"".join(b"T" + struct.pack("<i", len(x)) + x for x in IMAGES)
    same = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I20\ntcnumpy\ndtype\n(S'b1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\n" + short(bytes(SAME)) + b"tb"
    )
    _check(tmp_path / "old.bin", b"\x80\x02](" + images + b"e" + same + b"\x86.")


def test_columns_of_encoded_bytes_are_taken(tmp_path):
    _check(tmp_path / "column.bin", ([np.frombuffer(x, np.uint8)[:, None] for x in IMAGES], SAME))


def test_what_we_write_is_read(tmp_path):
    write_bin(tmp_path / "own.bin", IMAGES, SAME)
    read = read_bin(tmp_path / "own.bin")
    assert list(read.images) == IMAGES
    assert read.same.tolist() == SAME


class _Call:
    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


class _State:
    pass


HOSTILE = {
    "system": (_Call(os.system, "touch hacked"), "posix.system"),
    "eval": (_Call(eval, "1"), "builtins.eval"),
    "getattr": (_Call(getattr, "a", "b"), "builtins.getattr"),
    "popen": (_Call(subprocess.Popen, ["touch", "hacked"]), "subprocess.Popen"),
    "frombuffer": (_Call(np.frombuffer, b"1"), "numpy.frombuffer"),
    "object": (_State(), "_State"),
    "dict": (([{}] * 40, SAME), r"it holds what pair sets do not \(opcode EMPTY_DICT\)"),
    "set": ([set()], "EMPTY_SET"),
    "floats": (([1.5] * 40, SAME), "BINFLOAT"),
    "object array": ((list(np.array([b"a", "b"], object)), np.array([None, 1], object)), "NumPy type 'O8'"),
    "pixels": (([np.zeros((8, 8), np.uint8)] * 40, SAME), "image 0 is an array"),
    "text": ((["a"] * 40, SAME), "image 0 is a str"),
    "twos": ((IMAGES, [2] * 20), "other numbers than 0 and 1"),
    "names": ((IMAGES, ["yes"] * 20), "not a list of booleans"),
    "odd": ((IMAGES[:39], SAME), "39 images and 20 booleans"),
    "none": (([], []), "0 images and 0 booleans"),
    "one list": (IMAGES, "not two lists"),
    "call of a list": (b"](h\x00tR.", "damaged|not allowed|Memo"),
    "call of bytes": (b"C\x01a)R.", "a call of a bytes is not allowed"),
    "state of bytes": (b"C\x01a)b.", "state of a bytes is not allowed"),
    "state of a global": (b"cnumpy\ndtype\n}b.", "EMPTY_DICT"),
    "persistent": (b"Phello\n.", "PERSID"),
    "instance": (b"(i__builtin__\nbytes\n.", "INST"),
    "extension": (b"\x82\x01.", "EXT1"),
    "new object": (b"cnumpy\nndarray\n)\x81.", "NEWOBJ"),
    "unknown opcode": (b"\xff.", r"it is no pickle, or damaged \(0xff\)$"),
    "a record file": (b"\x0a\x23\xd7\xce" + bytes(40), r"it is no pickle, or damaged \(0x0a\)$"),
    "cut": (pickle.dumps((IMAGES, SAME), 2)[:-70], r"booleans\): it is cut short or damaged; copy it again$"),
    "cut in a frame": (
        pickle.dumps((IMAGES, SAME), 4)[:-70],
        r"booleans\): it is cut short or damaged; copy it again$",
    ),
    "bytes of a number": (b"cbuiltins\nbytes\n(J\xff\xff\xff\x7ftR.", r"bytes\(\) of a int"),
    "bytearray of a number": (b"cbuiltins\nbytearray\n(J\xff\xff\xff\x7ftR.", r"bytes\(\) of a int"),
    "wrong codec": (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.", "Latin-1"),
    "empty": (b"", "it is cut short or damaged; copy it again"),
    "not a pickle": (b"\xff\xd8\xff\xe0 a photo", "0xff"),
    "long bytes": (b"B\xff\xff\xff\xff.", "damaged"),
    "longest bytes": (b"\x8e" + b"\xff" * 7 + b"\x7f.", "damaged"),
    "longest bytearray": (b"\x96" + b"\xff" * 7 + b"\x7f.", "damaged"),
    "long frame": (b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f.", "damaged"),
    "high memo": (b"C\x01ar\xff\xff\xff\x7f0.", "damaged"),
    "deep": (b"(" * 100_000 + b"l" * 100_000 + b".", "not two lists"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_anything_else_is_refused_by_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    thing, message = HOSTILE[name]
    path = tmp_path / "bad.bin"
    path.write_bytes(thing if isinstance(thing, bytes) else pickle.dumps(thing, 4))
    tracemalloc.start()
    with pytest.raises(InputError, match=message) as caught:
        read_bin(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "bad.bin" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 330
    assert peak < 20e6
    assert not (tmp_path / "hacked").exists()


def test_one_text_encoded_many_times_costs_no_memory(tmp_path):
    text = b"X" + struct.pack("<I", 100_000) + b"a" * 100_000 + b"q\x00"
    latin = b"X\x06\x00\x00\x00latin1q\x01"
    again = b"c_codecs\nencode\nh\x00h\x01\x86R"
    (tmp_path / "bomb.bin").write_bytes(b"\x80\x02(" + text + latin + again * 5000 + b"l.")
    tracemalloc.start()
    with pytest.raises(InputError, match="more bytes than the file has"):
        read_bin(tmp_path / "bomb.bin")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_mutants_end_in_an_input_error_or_a_pair_set(tmp_path):
    rng = random.Random(5)
    path = tmp_path / "mutant.bin"
    refused = 0
    arrays = [np.frombuffer(x, np.uint8) for x in IMAGES[:6]]
    seeds = [pickle.dumps((arrays, np.array(SAME[:3])), p) for p in range(6)]
    seeds += [pickle.dumps((IMAGES[:6], SAME[:3]), p) for p in range(6)]
    for _ in range(800):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(data))
            action = rng.randrange(3)
            if action == 0:
                data[at] = rng.randrange(256)
            elif action == 1:
                del data[at : at + rng.randint(1, 8)]
                data = data or bytearray(b".")
            else:
                data[at:at] = rng.randbytes(rng.randint(1, 4))
        path.write_bytes(data)
        try:
            read_bin(path)
        except InputError:
            refused += 1
    assert refused > 250


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match=r"gone\.bin cannot be read: No such file"):
        read_bin(tmp_path / "gone.bin")
    with pytest.raises(InputError, match=r"No such file or directory; facetrain data pack writes it with --held-out"):
        read_bin(tmp_path / "heldout.bin")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_bin(tmp_path)


def _embeddings(seed=3, pairs=200):
    rng = np.random.default_rng(seed)
    same = np.arange(pairs) // 10 % 2 == 0
    first = rng.normal(size=(pairs, 16))
    second = np.where(same[:, None], first + 0.9 * rng.normal(size=first.shape), rng.normal(size=first.shape))
    rows = np.empty((2 * pairs, 16), np.float32)
    rows[0::2], rows[1::2] = first, second
    return rows * 7, same


def test_verify_equals_the_protocol_written_out():
    rows, same = _embeddings()
    unit = normalize(rows.astype(np.float64))
    distance = np.square(unit[0::2] - unit[1::2]).sum(1)
    accuracies = []
    for train, test in KFold(10, shuffle=False).split(same):
        right = [np.mean((distance[train] < t) == same[train]) for t in np.arange(0, 4, 0.01)]
        accuracies.append(np.mean((distance[test] < np.arange(0, 4, 0.01)[np.argmax(right)]) == same[test]))
    result = verify(rows, same, flip=False, fprs=(0.1,))
    np.testing.assert_allclose(result.folds.accuracies, accuracies)
    assert result.accuracy == pytest.approx(np.mean(accuracies))
    assert 0.8 < result.accuracy < 1
    assert result.accuracy_std == pytest.approx(np.std(accuracies))
    np.testing.assert_allclose(result.scores, (unit[0::2] * unit[1::2]).sum(1))
    assert "no flip" in result.protocol
    assert "10 folds" in result.protocol
    assert result.record()["tpr"] == {"1e-1": result.cells[0].tpr}
    assert result.record()["impostors"] == {"1e-1": 10}


def test_a_saved_result_is_read_back_whole(tmp_path):
    result = replace(verify(*_embeddings(), flip=False, fprs=(0.05, 0.1), rule="nearest"), images=390)
    result.save(tmp_path / "verification" / "lfw.npz")
    again = read_verification(tmp_path / "verification" / "lfw.npz")
    assert again.record() == result.record()
    assert (again.cells, again.images) == (result.cells, 390)
    assert again.threshold == result.threshold
    np.savez(tmp_path / "bare.npz", scores=result.scores, same=result.same)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "verification" / "lfw.npz").read_bytes()[:500])
    for name in ("bare", "cut"):
        with pytest.raises(InputError, match=rf"{name}\.npz is not a readable verification result"):
            read_verification(tmp_path / f"{name}.npz")
    with pytest.raises(InputError, match=r"cut\.npz/lfw\.npz cannot be written: "):
        result.save(tmp_path / "cut.npz" / "lfw.npz")


def test_embeddings_that_cannot_be_scored_are_named():
    rows, same = _embeddings()
    with pytest.raises(InputError, match=r"200 pairs need \(2 x 200, D\) embeddings, not \(399, 16\)"):
        verify(rows[1:], same)
    rows[13] = np.nan
    with pytest.raises(InputError, match="not finite, the first nan at pair 6"):
        verify(rows, same)
    rows[13] = 0
    assert verify(rows, same).scores[6] == 0


def test_reading_takes_no_import_of_torch():
    code = "import facetrain.evaluation.pairs, sys; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert io.StringIO(found.stdout).read().strip() == "False"


def test_repeated_images_are_embedded_once():
    pairs = PairSet("p", [bytes([c]) * 9 for c in b"abaccb"], np.array([True, False, True]))
    distinct = DistinctImages(pairs)
    assert all(distinct.encoded(row) is pairs.images[first] for row, first in ((0, 0), (1, 1), (2, 3)))  # no copies
    assert [distinct.encoded(i) for i in range(len(distinct))] == [b"a" * 9, b"b" * 9, b"c" * 9]
    assert distinct.row.tolist() == [0, 1, 0, 2, 2, 1]
    assert distinct.where(2) == pairs.where(3)
