"""Which files of an artifact are shown: gitignore patterns against full paths, and model weights by name.

Why not a library's translation to regular expressions: the patterns come from whoever may create a pod, and are matched in a
process that serves the whole node. `*a*a*a*a*b` as `[^/]*a[^/]*a…` backtracks for ever with the interpreter lock held. Here each
name is matched in time linear in its length (atomic groups), and `**` by stepping through states. Pure.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fuse.errors import InvalidRequest
from fuse.filesystem.table import View

MAX_PATTERNS: Final = 256
MAX_PATTERN_CHARACTERS: Final = 1024
MAX_WORK: Final = 30_000_000
"""What matching an artifact may take, in parts of patterns that are compared with names: some ten seconds, twenty patterns for
100,000 files that lie five directories deep."""
PATTERNS: Final = "patterns of files to exclude"

# By name, for tools disagree about layer types. Indexes of shards go with their shards: without them they only mislead loaders.
WEIGHTS: Final = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.gguf",
    "*.ggml",
    "*.bin",
    "*.bin.index.json",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.onnx",
    "*.onnx_data",
    "*.h5",
    "*.msgpack",
    "*.dduf",
)
_NOT_WEIGHTS: Final = frozenset({"training_args.bin"})
_WEIGHTS: Final = re.compile("|".join(fnmatch.translate(pattern) for pattern in WEIGHTS))
_ANY: Final = None
_ORDINARY_CHARACTERS: Final = 64


def is_weight(path: str) -> bool:
    """Whether a file is taken for model weights; its name decides, in any directory and case."""
    name = path.rpartition("/")[2].lower()
    return _WEIGHTS.fullmatch(name) is not None and name not in _NOT_WEIGHTS


@dataclass(frozen=True, slots=True)
class _Pattern:
    parts: tuple[re.Pattern[str] | None, ...]
    """A name each; None stands for `**`."""
    excludes: bool
    directories_only: bool
    work: int
    """What comparing it with one name takes at most, in parts of ordinary length."""

    def matches(self, names: Sequence[str], *, is_directory: bool) -> bool:
        """Whether the pattern names this path or a directory above it."""
        parts = self.parts
        end = len(parts)
        states = self._closure({0})
        for position, name in enumerate(names):
            following: set[int] = set()
            for state in states:
                part = parts[state]
                if part is _ANY:
                    # At the end of a pattern `**` is everything inside, not the directory itself.
                    following.add(end if state == end - 1 else state)
                elif part.fullmatch(name):
                    following.add(state + 1)
            is_last = position == len(names) - 1
            if end in following and (not is_last or is_directory or not self.directories_only):
                return True
            states = self._closure(following - {end})
            if not states:
                return False
        return False

    def _closure(self, states: set[int]) -> set[int]:
        """With the states that are reached without a name, since `**/` may stand for no directory at all."""
        for state in tuple(states):
            at = state
            while at < len(self.parts) - 1 and self.parts[at] is _ANY:
                at += 1
                states.add(at)
        return states


class Filter:
    """A view made ready, for one artifact. Raises InvalidRequest, naming the pattern that is none."""

    def __init__(self, view: View) -> None:
        if len(view.exclude) > MAX_PATTERNS:
            raise InvalidRequest(
                f"{len(view.exclude)}, more than {MAX_PATTERNS}", where=PATTERNS, fix="use fewer, broader patterns"
            )
        self._exclude_weights = view.exclude_weights
        self._patterns = [pattern for text in view.exclude if (pattern := _compiled(text)) is not None]
        # The last match wins: look from the end.
        self._patterns.reverse()
        self._work_a_name = sum(pattern.work for pattern in self._patterns)
        self._work = 0

    def hides(self, path: str, *, is_directory: bool = False) -> bool:
        """Raises InvalidRequest when so many patterns were compared with so many names that it takes too long."""
        names = path.split("/")
        self._work += self._work_a_name * len(names)
        if self._work > MAX_WORK:
            raise InvalidRequest(
                "comparing them with all files of the artifact takes too long",
                where=PATTERNS,
                fix="use fewer, shorter patterns",
            )
        for pattern in self._patterns:
            if pattern.matches(names, is_directory=is_directory):
                return pattern.excludes
        return self._exclude_weights and not is_directory and is_weight(path)


def _compiled(text: str) -> _Pattern | None:
    """None for an empty line or a comment (gitignore(5))."""
    if len(text) > MAX_PATTERN_CHARACTERS or "\n" in text or "\0" in text:
        raise _refused(text, "is too long or has more than one line")
    rest = text
    while rest.endswith(" ") and not rest.endswith("\\ "):
        rest = rest[:-1]
    if not rest or rest.startswith("#"):
        return None
    excludes = not rest.startswith("!")
    rest = rest.removeprefix("!")
    directories_only = rest.endswith("/")
    rest = rest.removesuffix("/")
    anchored = "/" in rest
    parts = rest.removeprefix("/").split("/")
    if not rest or "" in parts:
        raise _refused(text, "names nothing")
    compiled: list[re.Pattern[str] | None] = [] if anchored else [_ANY]
    for part in parts:
        if part.strip("*") or part == "*":  # git takes more than two stars for two
            compiled.append(_name_pattern(part, text))
        elif not compiled or compiled[-1] is not _ANY:
            compiled.append(_ANY)
    return _Pattern(tuple(compiled), excludes, directories_only, len(compiled) + len(text) // _ORDINARY_CHARACTERS)


def _name_pattern(part: str, text: str) -> re.Pattern[str]:
    """One name. Between two stars the leftmost match is always as good as any other, so it need never be given up."""
    chunks = [""]
    position = 0
    while position < len(part):
        char = part[position]
        position += 1
        if char == "*":
            chunks.append("")
        elif char == "?":
            chunks[-1] += "."
        elif char == "[" and (close := _class_end(part, position)):
            chunks[-1] += _character_class(part[position : close - 1], text)
            position = close
        elif char == "\\":
            if position == len(part):
                raise _refused(text, "ends in a backslash")
            chunks[-1] += re.escape(part[position])
            position += 1
        else:
            chunks[-1] += re.escape(char)
    first, *others = chunks
    expression = first
    if others:
        *between, last = others
        expression += "".join(f"(?>.*?{chunk})" for chunk in between if chunk) + f".*{last}"
    return re.compile(expression, re.DOTALL)


def _class_end(part: str, start: int) -> int:
    """The position behind the `]` that closes a class opened before `start`; 0: it is not closed, so `[` stands for itself."""
    position = start + 1 if part[start : start + 1] in ("!", "^") else start
    if part[position : position + 1] == "]":
        position += 1
    while position < len(part) and part[position] != "]":
        position += 2 if part[position] == "\\" else 1
    return position + 1 if position < len(part) else 0


def _character_class(inner: str, text: str) -> str:
    negated = inner[:1] in ("!", "^")
    inner = inner[1:] if negated else inner
    if "[:" in inner:
        raise _refused(text, "uses a POSIX character class")
    members = re.findall(r"\\.|.", inner, re.DOTALL)
    expression = "".join(
        "-" if member == "-" and 0 < position < len(members) - 1 else re.escape(member[-1])
        for position, member in enumerate(members)
    )
    expression = f"[{'^' if negated else ''}{expression}]"
    try:
        re.compile(expression)
    except re.error:
        raise _refused(text, "has a range that is turned around") from None
    return expression


def _refused(text: str, why: str) -> InvalidRequest:
    shown = text if len(text) <= 120 else f"{text[:117]}..."
    return InvalidRequest(
        f"the pattern {shown!r} {why}",
        where=PATTERNS,
        fix="patterns have the syntax of gitignore",
    )
