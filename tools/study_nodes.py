"""Reading a study's file key by key: each function refuses what is wrong in one line with its place."""

from __future__ import annotations

import re
from collections.abc import Sequence

from facetrain.strictyaml import Node, mistake

NAME = re.compile(r"\w[\w.+-]*")
"""Of settings, methods and evaluations: it can be a folder's."""


def check_keys(node: Node, keys: Sequence[str], prefix: str) -> None:
    """Refuse a part of the file that is no section, or has a key that it cannot have."""
    if not isinstance(node.value, dict):
        raise mistake(node.where, f"{prefix or 'a study'}: expected keys of its own: {', '.join(keys)}")
    for key, value in node.value.items():
        if key not in keys:
            name = f"{prefix}.{key}".removeprefix(".")
            raise mistake(value.where, f"{name}: unknown key; valid here: {', '.join(keys)}")


def entries(tree: Node, key: str, allowed: Sequence[str]) -> dict[str, Node]:
    """The named parts below a key, at least one, each with no other keys than ``allowed``."""
    found = child(tree, key)
    if found is None or not isinstance(found.value, dict) or not found.value:
        raise mistake(found.where if found else tree.where, f"{key}: expected at least one, by name, with its keys")
    for name, node in found.value.items():
        if not NAME.fullmatch(name):
            raise mistake(node.where, f"{key}.{name}: expected a name that can be a folder's: letters, digits, _ . + -")
        check_keys(node, allowed, f"{key}.{name}")
    return dict(found.value)


def child(node: Node, key: str) -> Node | None:
    """What a key holds; None where it is not there or null."""
    found = node.find([key])
    return None if found is None or found.value is None else found


def items(node: Node, key: str) -> list[Node]:
    """The items of a key that holds a list; none where it is not there."""
    found = child(node, key)
    if found is None:
        return []
    if not isinstance(found.value, list):
        raise mistake(found.where, f"{key} = {found.text}: expected a list in brackets: [a, b]")
    return list(found.value)


def text_of(node: Node, key: str, needed: bool = False) -> str:
    """The text of a key, "" where it is not given."""
    found = child(node, key)
    if found is None:
        if needed:
            raise mistake(node.where, f"{key} is missing")
        return ""
    if isinstance(found.value, dict | list):
        raise mistake(found.where, f"{key}: expected text")
    return str(found.text if found.text is not None else found.value)
