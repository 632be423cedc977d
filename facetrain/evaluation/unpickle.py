"""A pickle reader for insightface's .bin files: lists, tuples, bytes, numbers and flat NumPy arrays, and no more.

A pickle is a program. This one may not import or call anything: every global it names is matched against a short list
and answered by a method here, and every opcode that is not needed is refused by name. It stands on the standard
library's pure-Python unpickler, because the C one allocates what a damaged memo index or length asks for.
"""

from __future__ import annotations

import math
import os
import pickle
import pickletools
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

_OPCODES = """
PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4
STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS
GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD
"""
_GLOBALS = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
    **{(module, name): name for module in ("builtins", "__builtin__") for name in ("bytes", "bytearray")},
    **{
        (f"numpy.{core}.multiarray", name): kind
        for core in ("core", "_core")
        for name, kind in (("_reconstruct", "array"), ("scalar", "scalar"))
    },
    **{(f"numpy.{core}.numeric", "_frombuffer"): "frombuffer" for core in ("core", "_core")},
}
_Base: Any = pickle._Unpickler  # type: ignore[attr-defined]  # private, yet in every Python 3
_LONGEST_WORD, _MOST_AXES = 40, 32
_NUMPY_TYPES = ("b1", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")


@dataclass
class Array:
    """A NumPy array as the file holds it; ``numpy`` gives the array itself."""

    dtype: str = ""
    shape: tuple[int, ...] = ()
    raw: bytes = b""

    def numpy(self) -> NDArray:
        """The array, a view of ``raw``."""
        return np.frombuffer(self.raw, self.dtype).reshape(self.shape)


@dataclass
class _Type:
    code: str
    order: str = "|"


@dataclass(frozen=True)
class _Global:
    kind: str


class _Dispatch(dict):
    """Opcode -> method; an opcode that is not listed is named."""

    def __missing__(self, opcode: int) -> Any:
        name = {code.code: code.name for code in pickletools.opcodes}.get(chr(opcode))
        raise pickle.UnpicklingError(
            f"it holds what pair sets do not (opcode {name})"
            if name
            else f"it is no pickle, or damaged (0x{opcode:02x})"
        )


class _Bounded:
    """A file whose reads never ask for more than it holds, whatever length the pickle claims."""

    def __init__(self, file: BinaryIO) -> None:
        self.size = os.fstat(file.fileno()).st_size
        self._read = file.read
        self.readline = file.readline

    def read(self, count: int) -> bytes:
        if count < 0:
            raise pickle.UnpicklingError("a negative length")
        return self._read(min(count, self.size))


class _Unpickler(_Base):  # type: ignore[misc]
    def __init__(self, file: BinaryIO) -> None:
        bounded = _Bounded(file)
        super().__init__(bounded, encoding="bytes")
        self._left = bounded.size

    def find_class(self, module: str, name: str) -> _Global:
        kind = _GLOBALS.get((module, name))
        if kind is None:
            raise pickle.UnpicklingError(f"it asks for {module[:60]}.{name[:60]}, which pair sets do not hold")
        return _Global(kind)

    def load_bytearray8(self) -> None:
        self.load_binbytes8()

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if type(function) is not _Global or type(arguments) is not tuple:
            raise pickle.UnpicklingError(f"a call of a {type(function).__name__} is not allowed")
        self.stack[-1] = getattr(self, f"make_{function.kind}")(*arguments)

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is _Type:
            target.order = _text(state[1])
        elif type(target) is Array:
            _, shape, kind, fortran, raw = state
            self._fill(target, raw, kind, shape, "F" if fortran else "C")
        else:
            raise pickle.UnpicklingError(f"setting the state of a {type(target).__name__} is not allowed")

    def make_array(self, *_: Any) -> Array:
        return Array()

    def make_frombuffer(self, raw: Any, kind: Any, shape: Any, order: Any) -> Array:
        return self._fill(Array(), raw, kind, shape, _text(order))

    def make_dtype(self, code: Any, *_: Any) -> _Type:
        if _text(code) not in _NUMPY_TYPES:
            raise pickle.UnpicklingError(f"NumPy type {_text(code)!r:.20} is not allowed")
        return _Type(_text(code))

    def make_scalar(self, kind: Any, raw: Any) -> Any:
        return self._fill(Array(), raw, kind, (), "C").numpy().item()

    def make_bytes(self, data: Any = b"") -> bytes:
        if type(data) is not bytes:
            raise pickle.UnpicklingError(f"bytes() of a {type(data).__name__} is not allowed")
        return data

    def make_bytearray(self, data: Any = b"", encoding: Any = "latin-1") -> bytes:
        return self.make_encode(data, encoding) if type(data) is str else self.make_bytes(data)

    def make_encode(self, text: Any, encoding: Any) -> bytes:
        if type(text) is not str or _text(encoding) not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError("only text to Latin-1 may be encoded")
        # Written once, called a thousand times on one text: without a limit such a file costs any amount of memory.
        self._left -= len(text)
        if self._left < 0:
            raise pickle.UnpicklingError("it unpacks to more bytes than the file has")
        return text.encode("latin1")

    def _fill(self, array: Array, raw: Any, kind: Any, shape: Any, order: str) -> Array:
        if type(kind) is not _Type or type(raw) is not bytes or type(shape) is not tuple:
            raise pickle.UnpicklingError("an array's state is damaged")
        array.dtype = (kind.order if kind.order in "<>" else "") + kind.code
        # Before they are multiplied: a number of a pickle may have millions of digits.
        if len(shape) > _MOST_AXES or not all(type(n) is int and 0 <= n <= len(raw) for n in shape):
            raise pickle.UnpicklingError(f"an array's shape does not fit its {len(raw)} bytes")
        array.shape, array.raw = shape, raw
        flat = order == "C" or len(array.shape) - array.shape.count(1) <= 1
        if not flat or math.prod(array.shape) * int(kind.code[1]) != len(raw):
            raise pickle.UnpicklingError(f"an array of shape {array.shape!s:.40} does not fit its {len(raw)} bytes")
        return array

    dispatch = _Dispatch(
        {getattr(pickle, name)[0]: _Base.dispatch[getattr(pickle, name)[0]] for name in _OPCODES.split()}
    )
    dispatch.update({pickle.BYTEARRAY8[0]: load_bytearray8, pickle.REDUCE[0]: load_reduce, pickle.BUILD[0]: load_build})


def _text(value: Any) -> str:
    # Nothing else: the text of lists that hold one another many times over would fill any memory.
    if type(value) not in (bytes, str) or len(value) > _LONGEST_WORD:
        raise pickle.UnpicklingError(f"a {type(value).__name__} where a short word is expected")
    return value.decode("ascii") if type(value) is bytes else value


def load(file: BinaryIO) -> Any:
    """What the pickle in ``file`` holds: lists, tuples, str, bytes, bool, int, None and :class:`Array`.

    Bytearrays arrive as bytes, strings of Python 2 too.

    Raises:
        pickle.UnpicklingError: something that is not allowed, by name. Damaged files raise almost any other exception.
    """
    return _Unpickler(file).load()


def load_pairs(file: BinaryIO) -> tuple[list[bytes], NDArray[np.bool_]]:
    """Encoded images and booleans of a pair set, as many as there are.

    Raises:
        TypeError, ValueError: the pickle holds something else.
    """
    images, same = _two(load(file))
    return [_image(item, i) for i, item in enumerate(images)], _labels(same)


def _two(held: Any) -> tuple[Any, Any]:
    if not isinstance(held, (tuple, list)) or len(held) != 2:
        raise TypeError(f"it holds a {type(held).__name__}, not two lists")
    if not isinstance(held[0], (list, tuple)):
        raise TypeError(f"its images are a {type(held[0]).__name__}, not a list")
    return held[0], held[1]


def _image(item: Any, i: int) -> bytes:
    if isinstance(item, bytes):
        return item
    if isinstance(item, Array) and item.dtype == "u1" and len(item.shape) - item.shape.count(1) <= 1:
        return item.raw
    what = f"an array {item.shape!s:.40} of {item.dtype}" if isinstance(item, Array) else f"a {type(item).__name__}"
    raise TypeError(f"image {i} is {what}, not encoded bytes")


def _labels(same: Any) -> NDArray[np.bool_]:
    if isinstance(same, Array):
        values = same.numpy()
        if values.ndim != 1:
            raise TypeError(f"its booleans have shape {values.shape}")
    elif isinstance(same, (list, tuple)) and all(type(value) in (bool, int) for value in same):
        values = np.array(same)
    else:
        raise TypeError("its second part is not a list of booleans")
    if not np.isin(values, (0, 1)).all():
        raise ValueError("its booleans hold other numbers than 0 and 1")
    return values.astype(np.bool_)
