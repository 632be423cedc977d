"""Strict YAML for recipes: text -> a tree that knows where each value stands. Rules: :mod:`facetrain.recipe`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from facetrain.errors import InputError

MAX_LINE = 180  # characters of a message; with the prefix of the command line under 200
_MAX_BYTES = 128 << 10  # PyYAML takes a second for them
_MAX_CHAIN = 20
_MAX_DEPTH = 20

_DIGITS = r"(?:0|[1-9][0-9]*(?:_[0-9]+)*)"
_INT = re.compile(rf"[-+]?{_DIGITS}")
_FLOAT = re.compile(rf"[-+]?(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{{1,4}})?")
_WHOLE_WITH_EXPONENT = re.compile(r"([-+]?(?:0|[1-9][0-9]*))[eE]\+?([0-9]{1,2})")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


@dataclass(frozen=True)
class Place:
    """A line of a file, or the command line."""

    file: str | None = None
    line: int = 0

    def __str__(self) -> str:
        if self.file is None:
            return "command line"
        name = self.file if len(self.file) <= 70 else "..." + self.file[-67:]
        return f"{name}:{self.line}" if self.line else name


@dataclass(frozen=True)
class Node:
    """A value and its place: a dict of nodes by key, a list of nodes, or a scalar that was written ``text``."""

    value: Any
    where: Place
    text: str | None = None

    def plain(self) -> Any:
        """The value without places, as JSON knows it."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def find(self, loc: Sequence[int | str]) -> Node | None:
        """The node at a path of keys and positions, or None."""
        node = self
        for part in loc:
            children = node.value
            items = dict(enumerate(children)) if isinstance(children, list) else children
            if not isinstance(items, dict) or part not in items:
                return None
            node = items[part]
        return node


def one_line(text: str, reserved: int = 0) -> str:
    """``text`` without control characters, cut to :data:`MAX_LINE` minus ``reserved`` characters."""
    text = "".join(c if c.isprintable() else " " for c in text)
    room = MAX_LINE - reserved
    return text if len(text) <= room else text[: room - 3].rstrip() + "..."


def mistake(place: Place, text: str) -> InputError:
    """The error to raise for something at ``place``."""
    return InputError(one_line(f"{place}: {text}"))


def scalar(text: str) -> Any:
    """The meaning of an unquoted scalar."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > 100:
        return text
    if _INT.fullmatch(text):
        return int(text)
    if match := _WHOLE_WITH_EXPONENT.fullmatch(text):
        return int(match[1]) * 10 ** int(match[2])
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", ""))
    return text


class _Loader(yaml.SafeLoader):
    """Composes nodes only; refuses what a recipe has no use for."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        refusal = None
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            refusal = "anchors and aliases (& and *) are not used in recipes; use extends"
        elif getattr(event, "tag", None):
            refusal = "tags (!) are not used in recipes"
        elif self.depth >= _MAX_DEPTH:
            refusal = "too deeply nested for a recipe"
        if refusal:
            raise yaml.MarkedYAMLError(None, None, refusal, event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _convert(node: yaml.Node, name: str | None, prefix: str = "") -> Node:
    def place(mark: yaml.Mark) -> Place:
        return Place() if name is None else Place(name, mark.line + 1)

    if isinstance(node, yaml.ScalarNode):
        _refuse_nul(node.value, place(node.start_mark), prefix)
        return Node(scalar(node.value) if node.style is None else node.value, place(node.start_mark), node.value)
    if isinstance(node, yaml.SequenceNode):
        return Node([_convert(item, name, prefix) for item in node.value], place(node.start_mark))
    entries: dict[str, Node] = {}
    for key, value in node.value:
        where = place(key.start_mark)
        if not isinstance(key, yaml.ScalarNode):
            raise mistake(where, "a key must be a word, not a list or a section")
        _refuse_nul(key.value, where, prefix)
        if key.value in entries:
            first = f" (first on line {entries[key.value].where.line})" if name is not None else ""
            raise mistake(where, f"{prefix}{key.value} is given twice{first}; keep one of them")
        child = _convert(value, name, f"{prefix}{key.value}.")
        entries[key.value] = Node(child.value, where, child.text)  # the key's line: the value may start further down
    return Node(entries, place(node.start_mark))


def _refuse_nul(text: str, place: Place, prefix: str) -> None:
    if "\0" in text:
        raise mistake(place, f"{prefix.rstrip('.')}: a NUL character (\\0); no name or path has one, take it out")


def parse(text: str, name: str | None) -> Node | None:
    """A YAML document as a tree, None when empty; ``name`` is the file's in messages, None for the command line."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        # Where a token begins, for it may end lines further down; but not where a section begins.
        token = error.context_mark if (error.context or "").startswith("while scanning") else None
        mark = token or error.problem_mark or error.context_mark
        problem = error.problem or error.context or ""
        if problem.startswith("but "):
            problem = f"{error.context} {problem}"
        hint = "; indent with spaces" if "\\t" in problem else ""
        line = mark.line + 1 if mark is not None else 0
        raise mistake(Place(name, line), f"cannot be read as YAML: {problem}{hint}") from None
    except yaml.YAMLError as error:
        raise mistake(Place(name), f"cannot be read as YAML: {str(error).splitlines()[0]}") from None
    return None if node is None else _convert(node, name)


def merge(base: Node, top: Node) -> Node:
    """``top`` over ``base``: sections key by key, everything else replaced."""
    if not (isinstance(base.value, dict) and isinstance(top.value, dict)):
        return top
    merged = dict(base.value)
    for key, node in top.value.items():
        merged[key] = merge(merged[key], node) if key in merged else node
    return Node(merged, top.where if top.where.file else base.where)  # an override is told by its keys


def read(path: Path, chain: tuple[Path, ...] = ()) -> Node:
    """The tree of a file, its ``extends`` resolved; ``chain`` is the files that led here.

    Raises:
        InputError: one line naming file and line.
    """
    place = Place(str(path))
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], 1)
        raise mistake(place, "no such recipe" + (f"; did you mean {path.parent / near[0]}?" if near else "")) from None
    except OSError as error:
        raise mistake(place, f"{error.strerror}; expected a recipe, a YAML file") from None
    except UnicodeDecodeError:
        raise mistake(place, "is not a text file; expected a recipe, YAML in UTF-8") from None
    if len(content) > _MAX_BYTES:
        raise mistake(place, "is larger than 128 KiB; expected a recipe, a small YAML file")
    tree = parse(text, str(path)) or Node({}, Place(str(path), 1))
    if not isinstance(tree.value, dict):
        raise mistake(tree.where, "expected lines of the form key: value")
    base = tree.value.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base.value, str):
        raise mistake(base.where, "extends: expected the path of one recipe")
    other = path.parent / base.value
    chain = (*chain, path.resolve())
    if len(chain) > _MAX_CHAIN:
        raise mistake(base.where, f"extends = {base.value}: more than {_MAX_CHAIN} recipes, one extending the other")
    if other.resolve() in chain:
        raise mistake(base.where, f"extends = {base.value}: leads back to this recipe; remove one of the two")
    if not other.is_file():
        raise mistake(base.where, f"extends = {base.value}: no such file; the path is relative to {path.name}")
    return merge(read(other, chain), tree)
