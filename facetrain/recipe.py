"""Recipes: YAML files, laid over one another, plus ``key.sub=value`` -> :class:`facetrain.config.Config`, and back.

What a value means, for files and for overrides alike (YAML 1.2, not PyYAML's 1.1):

- ``true`` and ``false`` are the only booleans; ``yes``, ``no``, ``on``, ``off`` are text, so a bool key refuses them.
- Decimal numbers only: ``5e-4``, ``1E5``, ``1_000``, ``.5``. A whole number may be written ``1e5``, but not ``2.0``.
- ``010`` (8 or 10?), ``0x10``, ``12:30``, dates and everything quoted are text, so a number's key refuses them.
- ``null``, ``~`` and nothing at all are null. A key that takes a path also takes a bare number: ``output=5``.
- Tags, anchors, aliases and repeated keys are refused; nothing in a recipe can make an object.
- On the command line only ``[``, ``{`` and quotes start YAML syntax; anything else is one scalar up to its end.

``extends: other.yaml`` at the top of a file, relative to that file, takes everything from the other one first; sections
are merged key by key, lists and values replaced. All other relative paths are relative to the current directory.
Recipes after the first are laid over it in the same way, with what they extend, and ``key=value`` over them all.

Every mistake is one line: ``FILE:LINE: key = value: expectation``, for an override ``command line: key = value: ...``.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from facetrain.config import Config
from facetrain.errors import InputError
from facetrain.strictyaml import Node, Place, merge, mistake, one_line, parse, read, scalar

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Loc = Sequence[int | str]


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe.

    Args:
        path: the YAML file.
        overrides: ``key.sub=value``, which win over all files, or further recipes (``.yaml``, ``.yml``, no ``=``), each
            of which wins over the files before it.

    Raises:
        InputError: one line for the first mistake, and how many more there are.
    """
    tree = read(Path(path))
    for text in filter(is_recipe, overrides):
        tree = merge(tree, read(Path(text)))
    given: set[str] = set()
    for text in overrides:
        if not is_recipe(text):
            tree = merge(tree, _override(text, given))
    return validated(tree, str(path))


def validated(tree: Node, source: str) -> Config:
    """The recipe that a tree of values says; ``source`` is named where a key is missing.

    Raises:
        InputError: one line for the first mistake, and how many more there are.
    """
    tree = _numbers_as_text(tree, _schema())
    try:
        # JSON's strict mode takes a list for a tuple and text for a path, but no "3", true or 2.0 for a whole number.
        return Config.model_validate_json(json.dumps(tree.plain()), strict=True)
    except ValidationError as error:
        lines = _messages(tree, error.errors(), source)
    more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
    raise InputError(one_line(lines[0], len(more)) + more)


def is_recipe(word: str) -> bool:
    """Whether a word beside ``key=value`` ones names a recipe."""
    return "=" not in word and word.lower().endswith((".yaml", ".yml"))


def dump(config: Config) -> str:
    """The whole recipe as YAML that :func:`load` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=10_000)


def _override(text: str, given: set[str]) -> Node:
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+){0,9}", key):
        raise mistake(Place(), f"{text!r}: expected key.sub=value, for example optim.lr=0.1, or a recipe, *.yaml")
    if key in given:
        raise mistake(Place(), f"{key} is given twice; keep one of them")
    given.add(key)
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise mistake(Place(), f"{key}: the value is not UTF-8 text")
    # Only brackets and quotes ask for YAML's own reading: a path may hold ": " or " #".
    node = parse(value, None) if value[:1] in ("[", "{", '"', "'") else None
    node = node or Node(scalar(value), Place(), value)
    for part in reversed(key.split(".")):
        node = Node({part: node}, Place())
    return node


def _numbers_as_text(node: Node, schema: dict[str, Any]) -> Node:
    """Bare numbers become text again where the schema takes nothing else: a folder may be called 5."""
    if isinstance(node.value, dict):
        keys = schema.get("properties", {})
        return Node({k: _numbers_as_text(v, _resolve(keys.get(k, {}))) for k, v in node.value.items()}, node.where)
    if isinstance(node.value, list):
        items = _resolve(schema.get("items", {}))
        return Node([_numbers_as_text(item, items) for item in node.value], node.where)
    number = isinstance(node.value, int | float) and not isinstance(node.value, bool)
    wanted = schema.get("type") == "string" and "enum" not in schema
    return Node(node.text, node.where, node.text) if number and wanted else node


# ---- the schema, for messages


@cache
def _schema() -> dict[str, Any]:
    return Config.model_json_schema()


def _resolve(schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    return dict(_schema()["$defs"][reference.rsplit("/", 1)[1]]) if reference else schema


def _at(loc: Loc) -> dict[str, Any]:
    """The schema of the key at ``loc``; empty for keys that do not exist."""
    schema = _schema()
    for part in loc:
        if isinstance(part, int):
            prefix = schema.get("prefixItems", [])
            schema = prefix[part] if part < len(prefix) else schema.get("items", {})
        else:
            schema = schema.get("properties", {}).get(part, {})
        schema = _resolve(schema)
    return schema


def _leaves(schema: dict[str, Any], prefix: str = "") -> list[str]:
    """All keys that take a value."""
    names: list[str] = []
    for key, child in schema["properties"].items():
        section = _resolve(child)
        names += _leaves(section, f"{prefix}{key}.") if "properties" in section else [prefix + key]
    return names


def _expected(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_expected(choice) for choice in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return "one of " + ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    if "properties" in schema:
        return "keys of its own below it: " + ", ".join(schema["properties"])
    if "prefixItems" in schema:
        return f"a list of {len(schema['prefixItems'])}, each {_expected(schema['prefixItems'][0])}"
    if "items" in schema:
        noun = "paths" if schema["items"].get("format") == "path" else "values"
        return f"a list of {noun} in brackets: [a, b]"
    names = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "null": "null"}
    words = "a path" if schema.get("format") == "path" else names.get(schema.get("type", ""), "text")
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[key]}" for key, sign in bounds.items() if key in schema]
    return " ".join([words, " and ".join(limits)]).strip()


# ---- pydantic's errors -> plain words


def _messages(tree: Node, errors: list[ErrorDetails], path: str) -> list[str]:
    """One line an error; first the likeliest cause (typos, then values, then what is missing), then by place."""
    ranked = []
    for error in errors:
        rank = {"extra_forbidden": 0, "missing": 2}.get(error["type"], 1)
        place, text = _message(tree, error, path)
        ranked.append((rank, place.line, f"{place}: {text}"))
    return [line for _, _, line in sorted(ranked)]


def _message(tree: Node, error: ErrorDetails, path: str) -> tuple[Place, str]:
    loc, kind = error["loc"], error["type"]
    node = tree.find(loc)
    if kind == "extra_forbidden" and node is not None:
        return node.where, f"{_dotted(loc)} = {_shown(node)}: unknown key{_nearest(loc)}"
    if kind == "value_error":
        text = error["msg"].removeprefix("Value error, ")
        return _blame(tree, loc, text) or Place(path), f"{_dotted(loc)}: {text}" if loc else text
    if kind == "missing" and isinstance(loc[-1], str):
        schema = _at(loc)
        if "properties" in schema:  # name the key that is needed, not its section
            loc = (*loc, schema["required"][0])
            schema = _at(loc)
        section = tree.find(loc[:-1]) if len(loc) > 1 else None
        about = schema.get("description") or _expected(schema)
        text = f"{_dotted(loc)} is missing; set it in the recipe or as {_dotted(loc)}=...: {about}"
        return section.where if section is not None else Place(path), text
    if kind == "missing":  # one value of a list of fixed length
        loc = loc[:-1]
        node = tree.find(loc)
    if node is None:
        return Place(path), f"{_dotted(loc)}: {error['msg']}"
    return node.where, f"{_dotted(loc)} = {_shown(node)}: expected {_expected(_at(loc))}{_hint(node, _at(loc))}"


def _dotted(loc: Loc) -> str:
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")
    return name if len(name) <= 60 else name[:57] + "..."


def _shown(node: Node) -> str:
    if isinstance(node.value, dict | list):
        text = json.dumps(node.plain(), ensure_ascii=False)
    elif node.value is None:
        text = "null"
    else:
        quoted = isinstance(node.value, str) and not isinstance(scalar(node.value), str)
        text = f'"{node.text}"' if quoted else str(node.text)
    return text if len(text) <= 40 else text[:37] + "..."


def _hint(node: Node, schema: dict[str, Any]) -> str:
    """What to do about the mistakes that YAML and habit make likely."""
    if isinstance(node.value, float) and not math.isfinite(node.value):
        return ", finite"
    if not isinstance(node.value, str):
        return ""
    near = difflib.get_close_matches(node.value, [str(choice) for choice in schema.get("enum", [])], 1)
    if near:
        return f"; did you mean {near[0]}?"
    if "number" in _expected(schema):
        if isinstance(scalar(node.value), int | float):
            return "; remove the quotes"
        if re.fullmatch(r"[-+]?0[0-9]+", node.value):
            return "; remove the leading zeros"
    return ""


def _nearest(loc: Loc) -> str:
    """What an unknown key may have been meant to be."""
    key, siblings, leaves = str(loc[-1]), _at(loc[:-1]).get("properties", {}), _leaves(_schema())
    full = _dotted(loc)
    if full in leaves:  # "optim.lr: 3" as one key in a file
        *sections, leaf = full.split(".")
        return f"; write {leaf} on a line of its own, indented below {'.'.join(sections)}"
    near = difflib.get_close_matches(key, list(siblings), 1)
    if near:
        return f"; did you mean {_dotted([*loc[:-1], near[0]])}?"
    groups = dict.fromkeys(name.rsplit(".", 1)[0] for name in leaves if "." in name)
    elsewhere = [name for name in (*leaves, *groups) if name.rsplit(".", 1)[-1] == key]
    elsewhere = elsewhere or difflib.get_close_matches(full, leaves, 1, cutoff=0.75)
    if elsewhere:
        return f"; did you mean {elsewhere[0]}?"
    return "; valid here: " + ", ".join(siblings) if siblings else ""


def _blame(tree: Node, loc: Loc, message: str) -> Place | None:
    """Where one of the keys that a message names stands: an override, else in the recipe on top, else the first named.

    A key that is not given stands for its section.
    """
    words = [[*loc, *word.split(".")] for word in re.findall(r"[a-z]\w*(?:\.\w+)*", message)]
    named = [tree.find(word) for word in words] + [tree.find(word[:-1]) for word in words if len(word) > 1]
    places = [node.where for node in named if node is not None]
    on_top = [place for place in places if place.file == tree.where.file]
    return Place() if Place() in places else next(iter(on_top + places), None)
