"""Mutants of pair sets and hostile pickles: an InputError or a pair set; nothing runs, memory stays small.

Quick, ci and release counts: see scale.py.
"""

import pickle
import random
import resource
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from scale import scale, seed

from facetrain.errors import InputError
from facetrain.evaluation.pairs import read_bin

IMAGES = [bytes([n, 255 - n]) * (n + 1) for n in range(8)]
SAME = [True, False, False, True]
pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in mutants of Python 2's strings

_NAMES = """
os.system posix.system subprocess.Popen subprocess.getoutput builtins.eval builtins.exec builtins.compile
builtins.open builtins.__import__ builtins.getattr builtins.map builtins.type builtins.print
builtins.bytes.fromhex __builtin__.file __builtin__.apply importlib.import_module runpy.run_path code.interact
timeit.timeit pdb.run pickle.loads pickle._loads marshal.loads shelve.open ctypes.CDLL shutil.rmtree
pathlib.Path socket.create_connection urllib.request.urlopen webbrowser.open threading.Thread
multiprocessing.Process asyncio.run functools.partial operator.attrgetter types.FunctionType types.CodeType
copyreg._reconstructor copyreg.__newobj__ copy_reg._reconstructor sys.exit os._exit os.kill os.execv os.unlink
signal.alarm tempfile.mktemp torch.load torch._utils._rebuild_tensor_v2 numpy.load numpy.fromfile numpy.memmap
numpy.frombuffer numpy.core.multiarray.fromstring numpy.ndarray.tofile
numpy.core.multiarray._reconstruct.__globals__ numpy.dtype.__class__ _codecs.decode _codecs.encode.__self__
"""
CALLS = _NAMES.split()


def call(name, protocol, arguments=b"(X\x05\x00\x00\x00hacktR."):
    module, _, function = name.rpartition(".")
    if protocol < 4:
        return b"c" + module.encode() + b"\n" + function.encode() + b"\n" + arguments
    words = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, function))
    return b"\x80\x04" + words + b"\x93" + arguments


def nested(depth):
    """A list of two times one list of two times one ...: a few bytes whose text has 2 ** depth letters."""
    levels = b"".join(b"](h" + bytes([k]) + b"h" + bytes([k]) + b"eq" + bytes([k + 1]) for k in range(depth))
    return b"]q\x00" + levels


NUMBER = b"\x8b" + struct.pack("<i", 500_000) + b"\x7f" * 500_000 + b"q\x00"
LAUGHS = nested(60)
LAST = b"h\x3c"  # its outermost list
BOMBS = {
    "text of nested lists as a type": LAUGHS + b"0cnumpy\ndtype\n(" + LAST + b"tR.",
    "as a codec": LAUGHS + b"0c_codecs\nencode\n(X\x01\0\0\0a" + LAST + b"tR.",
    "as an order": LAUGHS + b"0cnumpy\ndtype\n(X\x02\0\0\0u1tR(K\x03" + LAST + b"tb.",
    "as the images": b"(" + LAUGHS + b"(lt.",
    "as an image": b"((" + LAUGHS + b"l(lt.",
    "as the booleans": b"((l" + LAUGHS + b"t.",
    "a shape of huge numbers": NUMBER
    + b"0cnumpy.core.numeric\n_frombuffer\n(C\x01acnumpy\ndtype\n(X\x02\0\0\0u1tR("
    + b"h\x00" * 2000
    + b"tX\x01\0\0\0CtR.",
    "a shape of many axes": b"cnumpy.core.numeric\n_frombuffer\n(C\x01acnumpy\ndtype\n(X\x02\0\0\0u1tR("
    + b"K\x01" * 100_000
    + b"tX\x01\0\0\0CtR.",
    "endless names": b"c" + b"a" * 10**6 + b"\n" + b"b" * 10**6 + b"\n.",
    "a number of a million digits": b"I" + b"9" * 10**6 + b"\n.",
    "a long of a million digits": b"L" + b"9" * 10**6 + b"L\n.",
    "a hundred thousand marks": b"(" * 100_000 + b".",
    "deep tuples": b")" + b"\x85" * 100_000 + b".",
    "itself": b"]q\x00h\x00a.",
    "itself as both": b"]q\x00h\x00ah\x00a.",
    "ten thousand copies of a text": b"X" + struct.pack("<I", 50_000) + b"a" * 50_000 + b"q\x00("
    + b"c_codecs\nencode\n(h\x00X\x06\0\0\0latin1tR" * 10_000 + b"l.",
    "the longest memo index": b"C\x01ar\xff\xff\xff\x7f0.",
    "twenty thousand memo places": b"".join(b"]r" + struct.pack("<I", n * 40_000) for n in range(20_000)) + b".",
    "four gigabytes": b"B\xff\xff\xff\xff.",
    "eight exabytes": b"\x8e" + b"\xff" * 7 + b"\x7f.",
    "a frame without end": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f.",
    "a bytearray of a number": b"cbuiltins\nbytearray\n(J\xff\xff\xff\x7ftR.",
    "a persistent id": b"Pos.system\n.",
    "a binary persistent id": b"X\x02\0\0\0osQ.",
    "an extension code": b"\x84\x01\0\0\0.",
    "an instance": b"(ios\nsystem\n.",
    "an object": b"(cos\nsystem\no.",
    "a new object": b"cnumpy\nndarray\n)\x81.",
    "a new object with keywords": b"cnumpy\nndarray\n)}\x92.",
    "out of band": b"\x80\x05\x97.",
    "state for an object": b"cnumpy\nndarray\n(K\x00tb.",
    "names that are no text": b"K\x01K\x02\x93.",
    "a protocol to come": b"\x80\x63.",
    "stack underflow": b"RRRR.",
    "only a dot": b".",
}  # fmt: skip
HOSTILE = {f"{name}, protocol {p}": call(name, p) for name in CALLS for p in (0, 4)} | BOMBS


def memory():
    """Peak of this process in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_hostile_pickles(tmp_path, monkeypatch):
    """More than 60 kinds; none runs anything, takes a second or much memory."""
    monkeypatch.chdir(tmp_path)
    assert len(CALLS) + len(BOMBS) > 90
    path, before = tmp_path / "bad.bin", memory()
    for name, data in HOSTILE.items():
        path.write_bytes(data)
        started = time.process_time()
        with pytest.raises(InputError, match=r"bad\.bin") as caught:
            read_bin(path)
        assert time.process_time() - started < 5, name
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400, name
    assert memory() - before < 300e6
    assert [file.name for file in tmp_path.iterdir()] == ["bad.bin"]


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_refused_by_name(tmp_path, name):
    module, _, function = name.rpartition(".")
    for protocol in (0, 4):
        (tmp_path / "x.bin").write_bytes(call(name, protocol))
        with pytest.raises(InputError) as caught:
            read_bin(tmp_path / "x.bin")
        assert f"it asks for {module}.{function}, which pair sets do not hold" in str(caught.value)


def sets():
    """Sound files of every protocol and kind, and as Python 2 wrote them."""
    arrays = [np.frombuffer(image, np.uint8) for image in IMAGES]
    things = [(IMAGES, SAME), (arrays, np.array(SAME)), ([bytearray(x) for x in IMAGES], [int(x) for x in SAME])]
    things += [(arrays, [np.bool_(x) for x in SAME]), (tuple(IMAGES), np.array(SAME, ">i4"))]
    for thing in things:
        for protocol in range(6):
            yield pickle.dumps(thing, protocol)
    strings = b"".join(b"U" + bytes([len(image)]) + image for image in IMAGES)
    yield b"\x80\x02](" + strings + b"e](" + b"\x88\x89\x89\x88" + b"e\x86."
    text = b"".join(b"S" + repr(image)[1:].encode() + b"\na" for image in IMAGES)
    yield b"((lp0\n" + text + b"(lp1\n" + b"".join(b"I0%d\na" % same for same in SAME) + b"tp2\n."


def test_the_sound_ones_are_read(tmp_path):
    for number, data in enumerate(sets()):
        (tmp_path / "x.bin").write_bytes(data)
        pairs = read_bin(tmp_path / "x.bin")
        assert [bytes(pairs.encoded(i)) for i in range(8)] == IMAGES, number
        assert pairs.same.tolist() == SAME


def test_every_odd_length(tmp_path):
    """Cut at every byte: of no file does a part pass for a pair set."""
    path: Path = tmp_path / "cut.bin"
    for data in sets():
        for at in range(0, len(data), scale(quick=37, ci=1, release=1)):
            path.write_bytes(data[:at])
            with pytest.raises(InputError):
                read_bin(path)


def mutate(data, others, rng):
    mutant = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        at = rng.randrange(len(mutant))
        action = rng.randrange(6)
        if action == 0:
            mutant[at] = rng.randrange(256)
        elif action == 1:
            del mutant[at : at + rng.randint(1, 8)]
        elif action == 2:
            mutant[at:at] = rng.randbytes(rng.randint(1, 4))
        elif action == 3:
            mutant[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\0\0\0\x80"))
        elif action == 4:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            mutant[at:at] = other[start : start + rng.randint(1, 40)]
        else:
            mutant[at] = rng.choice(b"(.012tleaR}]b)\x81\x85\x93\x94\x95BCXTUVcipPqrhjgQo")
        mutant = mutant or bytearray(b".")
    return bytes(mutant)


def fuzz(path, count, generator):
    """(refused, worst seconds, growth of memory in bytes)."""
    rng, seeds = random.Random(generator), list(sets())
    refused, worst = 0, 0.0
    before = 0
    for number in range(count):
        if number == 1000:
            before = memory()  # everything that is ever imported is there
        path.write_bytes(mutate(rng.choice(seeds), seeds, rng))
        started = time.process_time()
        try:
            pairs = read_bin(path)
        except InputError as error:
            refused += "\n" not in str(error)
        else:
            assert len(pairs) == 2 * len(pairs.same) > 0
            assert all(isinstance(pairs.encoded(i), bytes) for i in range(len(pairs)))
        worst = max(worst, time.process_time() - started)
    return refused, worst, memory() - before if before else 0


def test_some_mutants(tmp_path):
    refused, worst, _ = fuzz(tmp_path / "mutant.bin", 1000, seed())
    assert refused > 500
    assert worst < 5


@pytest.mark.faults
def test_many_mutants(tmp_path):
    count = scale(quick=3000, ci=100_000, release=2_000_000)
    started = time.perf_counter()
    refused, worst, growth = fuzz(tmp_path / "mutant.bin", count, seed() + 1)
    print(
        f"{count:,} mutants, {refused:,} refused, worst {worst * 1e3:.1f} ms, memory + {growth / 2**20:.0f} MB, "
        f"{count / (time.perf_counter() - started):,.0f}/s"
    )
    assert refused > 0.5 * count
    assert worst < 5
    assert growth < 300 * 2**20
