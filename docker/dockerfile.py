"""A Dockerfile's instructions, read: stages, variables, continued lines. Pure standard library.

Only what docker/Dockerfile uses is known; anything else is refused with its line, rather than skipped.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

KNOWN = {
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "RUN",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
}
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::([-+])([^}]*))?\})")


class DockerfileError(Exception):
    """What in the file cannot be read."""


@dataclass(frozen=True)
class Instruction:
    """One instruction, its continued lines joined.

    Attributes:
        line: the number of its first line.
        name: in capitals.
        rest: what follows it, variables not yet replaced.
    """

    line: int
    name: str
    rest: str

    def words(self, variables: Mapping[str, str]) -> list[str]:
        """The words after the instruction, as a shell cuts them, variables replaced."""
        return [expand(word, variables) for word in shlex.split(self.rest)]

    def command(self) -> list[str]:
        """The command of CMD, ENTRYPOINT, VOLUME or HEALTHCHECK, which must be in exec form: a JSON list."""
        text = self.rest
        if self.name == "HEALTHCHECK":
            text = text.split("CMD", 1)[-1]
        try:
            command = json.loads(text)
        except json.JSONDecodeError:
            raise DockerfileError(f"line {self.line}: {self.name} is not in exec form, a JSON list") from None
        return [str(word) for word in command]

    def options(self) -> dict[str, str]:
        """The leading --key=value words."""
        found = {}
        for word in shlex.split(self.rest):
            if not word.startswith("--"):
                break
            key, _, value = word[2:].partition("=")
            found[key] = value
        return found


@dataclass(frozen=True)
class Stage:
    """One FROM and what follows it.

    Attributes:
        base: the image it starts from, or an earlier stage's name.
        name: after AS; else its number.
        instructions: without FROM.
    """

    base: str
    name: str
    instructions: tuple[Instruction, ...]


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace $NAME, ${NAME}, ${NAME:-otherwise} and ${NAME:+instead}; unknown names are empty, as docker has them."""

    def value(match: re.Match[str]) -> str:
        found = variables.get(match[1] or match[2], "")
        if match[3] == "-":
            return found or match[4]
        if match[3] == "+":
            return match[4] if found else ""
        return found

    return _VARIABLE.sub(value, text)


def read(path: Path) -> list[Instruction]:
    """All instructions of a file.

    Raises:
        DockerfileError: an instruction that is not known here, a here-document, or RUN with options.
    """
    found: list[Instruction] = []
    parts: list[str] = []
    first = 0
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.lstrip().startswith("#") or (not line.strip() and not parts):
            continue
        first = first if parts else number
        parts.append(line.rstrip())
        if parts[-1].endswith("\\"):
            parts[-1] = parts[-1][:-1]
            continue
        name, _, rest = " ".join(part.strip() for part in parts).partition(" ")
        found.append(Instruction(first, name.upper(), rest.strip()))
        parts = []
    if parts:
        raise DockerfileError(f"line {first}: the file ends within an instruction")
    for each in found:
        if each.name not in KNOWN:
            raise DockerfileError(f"line {each.line}: {each.name} is not known here")
        if each.name == "RUN" and (each.rest.startswith(("--", "[")) or "<<" in each.rest):
            raise DockerfileError(f"line {each.line}: RUN with options, in exec form or with a here-document")
    return found


def stages(instructions: list[Instruction], arguments: Mapping[str, str]) -> list[Stage]:
    """The file's stages.

    Args:
        instructions: of :func:`read`.
        arguments: ``--build-arg``.

    Raises:
        DockerfileError: something but ARG before the first FROM, or an argument that the file does not know.
    """
    known = {each.rest.partition("=")[0] for each in instructions if each.name == "ARG"}
    for name in arguments:
        if name not in known:
            raise DockerfileError(f"--build-arg {name}: no ARG has that name")
    variables: dict[str, str] = {}
    found: list[tuple[str, str, list[Instruction]]] = []
    for each in instructions:
        if each.name == "FROM":
            words = each.words(variables)
            named = len(words) == 3 and words[1].upper() == "AS"
            if len(words) != 1 and not named:
                raise DockerfileError(f"line {each.line}: expected FROM image or FROM image AS name")
            found.append((words[0], words[2] if named else str(len(found)), []))
        elif found:
            found[-1][2].append(each)
        elif each.name == "ARG":
            name, _, default = each.rest.partition("=")
            variables[name] = arguments.get(name, expand(default, variables))
        else:
            raise DockerfileError(f"line {each.line}: {each.name} before the first FROM")
    return [Stage(base, name, tuple(inside)) for base, name, inside in found]
