"""Commands of a study's file: their words, what stands in braces, and whether facetrain would take them."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, cast

from typer.main import get_command

from facetrain.cli import app
from facetrain.strictyaml import Node, mistake


def filled(words: Sequence[str], values: Mapping[str, str]) -> tuple[str, ...]:
    """Words with what ``{name}`` stands for."""
    for name, value in values.items():
        words = [word.replace(f"{{{name}}}", value) for word in words]
    return tuple(words)


def words_of(node: Node, names: Sequence[str]) -> tuple[str, ...]:
    """The words of a command, in which ``{name}`` stands for something where ``names`` has it.

    Raises:
        InputError: no words, another name, or a command that facetrain would not take.
    """
    try:
        words = shlex.split(node.value)
    except ValueError as error:
        raise mistake(node.where, f"cannot be read as a command: {str(error).lower()}") from None
    for name in {name for word in words for name in re.findall(r"\{(.*?)\}", word)} - set(names):
        known = ", ".join(f"{{{value}}}" for value in names)
        raise mistake(node.where, f"{{{name}}} stands for nothing here; these do: {known}")
    problem = _problem(tuple(words))
    if problem:
        raise mistake(node.where, f"{shlex.join(words[:3])}: {problem}")
    return tuple(words)


@functools.cache
def _problem(words: tuple[str, ...]) -> str | None:
    """Why facetrain would not take a command, which would come late after a training."""
    command, parent, rest = _commands(), None, list(words[1:])
    try:
        while True:
            context = command.make_context(words[0], rest, parent=parent)
            if not hasattr(command, "resolve_command"):
                return None
            _, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
            command, parent = cast(Any, found), context
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's own, by whatever class its version has
            raise
        return str(error.format_message()).rstrip(".")


@functools.cache
def _commands() -> Any:
    return get_command(app)
