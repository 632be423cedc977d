"""What a user's mistake is to tests: the words, the files and variables it needs, and what must be said about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Link:
    """A symbolic link to make."""

    to: str


@dataclass(frozen=True)
class Special:
    """Something that is no file, made by a function of :mod:`os`."""

    make: Callable[[Path], None]


FOLDER, PIPE = Special(os.mkdir), Special(os.mkfifo)
Content = str | bytes | Link | Special

PNG = bytes.fromhex(  # a grey pixel
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
    "3a7e9b550000000a49444154789c636000000002000148afa4710000000049454e44ae426082"
)


@dataclass(frozen=True)
class Case:
    """One mistake.

    Attributes:
        words: of the command line, behind ``facetrain``.
        says: what the one line must contain: the key or file at fault, and what was expected or what to do.
        files: written into the sandbox before, by path.
        environment: variables set for the command.
        kind: what the case is counted under.
    """

    words: tuple[str, ...]
    says: tuple[str, ...]
    files: Mapping[str, Content] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    kind: str = ""

    @property
    def name(self) -> str:
        """For the list of tests: the words, and the first line of what they stumble over."""
        made = [text.decode("latin-1") if isinstance(text, bytes) else str(text) for text in self.files.values()]
        text = " ".join([*self.words, *made[:1]])
        return "".join(c if c.isascii() and c.isprintable() else "~" for c in text)[:70]

    def prepare(self, here: Path) -> None:
        """Write the files."""
        for name, content in self.files.items():
            path = here / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_symlink() or path.is_file():
                path.unlink()
            if isinstance(content, Link):
                path.symlink_to(content.to)
            elif isinstance(content, Special):
                content.make(path)
            else:
                path.write_bytes(content.encode() if isinstance(content, str) else content)


def command(words: str, *says: str, files: Mapping[str, Content] | None = None, **environment: str) -> Case:
    """A command line of words without blanks."""
    return Case(tuple(words.split()), says, files or {}, environment)


def recipe(text: str | bytes, *says: str) -> Case:
    """A recipe of its own, ``bad.yaml``; line 2 is the first of ``text`` where that is text."""
    whole = f"extends: r.yaml\n{text}\n" if isinstance(text, str) else text
    return Case(("train", "bad.yaml"), ("bad.yaml", *says), {"bad.yaml": whole})


def override(word: str, *says: str) -> Case:
    """A good recipe with a word behind it."""
    return Case(("train", "r.yaml", word), says)
