"""Views: gitignore's syntax, the last match, weights by name, and patterns made to hang."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from pathlib import Path

import pathspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fuse.artifact.view import MAX_PATTERNS, Filter, is_weight
from fuse.errors import InvalidRequest
from fuse.filesystem.table import View
from tests.conftest import need_program


def hidden(path: str, *patterns: str, weights: bool = False, is_directory: bool = False) -> bool:
    return Filter(View(exclude=patterns, exclude_weights=weights)).hides(path, is_directory=is_directory)


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("*.bin", "a.bin", True),
        ("*.bin", "sub/a.bin", True),
        ("/*.bin", "sub/a.bin", False),
        ("sub/*.bin", "sub/a.bin", True),
        ("sub/*.bin", "x/sub/a.bin", False),
        ("sub/*.bin", "sub/deep/a.bin", False),
        ("**/sub/*.bin", "x/sub/a.bin", True),
        ("sub/**/a", "sub/a", True),
        ("sub/**/a", "sub/x/y/a", True),
        ("sub/**", "sub/x/y", True),
        ("sub/**", "sub", False),
        ("sub", "sub/x", True),
        ("sub/", "sub/x", True),
        ("sub/", "sub", False),
        ("/sub", "x/sub/y", False),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("a[bc]d", "acd", True),
        ("a[!bc]d", "acd", False),
        ("a[^bc]d", "axd", True),
        ("a[b-d]e", "ace", True),
        ("a[]]b", "a]b", True),
        ("a[b", "a[b", True),
        ("[[]v1].bin", "[v1].bin", True),
        (r"\#x", "#x", True),
        (r"\!x", "!x", True),
        (r"a\*b", "a*b", True),
        (r"a\*b", "axb", False),
        ("a ", "a", True),
        (r"a\ ", "a ", True),
        ("#a", "#a", False),
        ("", "a", False),
        ("**", "a/b", True),
        ("a**b", "axxb", True),
        ("*", "a/b", True),
        ("model-*-of-*.safetensors", "model-1-of-2.safetensors", True),
        ("*a*b*", "xaxbx", True),
        ("*ab*ab", "abab", True),
        ("*ab*ab", "ab", False),
        ("A", "a", False),
    ],
)
def test_patterns_match_as_gitignore_says(pattern: str, path: str, expected: bool) -> None:
    """gitignore(5), against full paths."""
    assert expected == hidden(path, pattern)


def test_the_last_match_wins() -> None:
    """Also over a directory that is excluded before: this is a filter and not a walk."""
    assert hidden("a.bin", "*.bin", "!keep.bin")
    assert not hidden("keep.bin", "*.bin", "!keep.bin")
    assert hidden("keep.bin", "!keep.bin", "*.bin")
    assert not hidden("sub/keep", "sub/", "!sub/keep")
    assert hidden("sub/keep", "!sub/keep", "sub/")


def test_weights_are_hidden_by_name_before_the_patterns_speak() -> None:
    """A pattern can bring one back; files beside them stay."""
    assert hidden("model.safetensors", weights=True)
    assert not hidden("model.safetensors", "!*.safetensors", weights=True)
    assert not hidden("config.json", weights=True)
    assert not hidden("model.safetensors")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("model.safetensors", True),
        ("deep/MODEL.SafeTensors", True),
        ("model.safetensors.index.json", True),
        ("llama-q4.gguf", True),
        ("pytorch_model.bin", True),
        ("pytorch_model.bin.index.json", True),
        ("consolidated.00.pth", True),
        ("model.onnx", True),
        ("training_args.bin", False),
        ("tiktoken.model", False),
        ("tokenizer.json", False),
        ("model.safetensors.md", False),
        ("weights/README", False),
    ],
)
def test_weights_are_known_by_their_names(path: str, expected: bool) -> None:
    """Not by media types, about which tools disagree."""
    assert expected == is_weight(path)


ALPHABET = st.sampled_from(["a", "b", "ab", ".", "x.bin", "*", "?", "**", "[ab]", "[!a]", "a*b", "*a*"])
PATTERNS = st.tuples(
    st.sampled_from(["", "!", "/"]),
    st.lists(st.lists(ALPHABET, min_size=1, max_size=3).map("".join), min_size=1, max_size=4).map("/".join),
    st.sampled_from(["", "/"]),
).map("".join)
NAMES = st.text("ab.x", min_size=1, max_size=4).filter(lambda name: name not in (".", ".."))
PATHS = st.lists(NAMES, min_size=1, max_size=5).map("/".join)


@settings(max_examples=300, deadline=None)
@given(patterns=st.lists(PATTERNS, min_size=1, max_size=4), path=PATHS)
def test_patterns_match_as_an_independent_implementation_says(patterns: list[str], path: str) -> None:
    """pathspec, by its translation to regular expressions."""
    # Of `sub/*` it thinks that it leaves what is deeper; to git, and to us, the directories that it matches go whole. Its `[!a]`
    # matches a slash; git's does not. And git takes `***` for `**`.
    assume(not any(re.search(r"/\*+/?$", pattern) or "[!" in pattern or "***" in pattern for pattern in patterns))
    theirs = pathspec.PathSpec.from_lines("gitignore", patterns).match_file(path)

    assert theirs == hidden(path, *patterns)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pattern=PATTERNS.filter(lambda pattern: not pattern.startswith("!")), paths=st.lists(PATHS, min_size=5, max_size=30)
)
def test_a_pattern_matches_as_git_says(repository: Path, pattern: str, paths: list[str]) -> None:
    """Git itself, asked for paths that need not exist."""
    # gitignore(5) says that `a**` is `a*`; git compares a literal beginning apart and then sees `**` at the start of the rest.
    assume(not re.search(r"[^/*]\*\*|\*\*[^/*]", pattern))
    (repository / ".git" / "info" / "exclude").write_text(f"{pattern}\n")
    ignored = subprocess.run(
        ["git", "-C", str(repository), "check-ignore", "--no-index", "--stdin"],
        input="".join(f"{path}\n" for path in paths),
        capture_output=True,
        text=True,
        check=False,
    ).stdout.splitlines()

    assert {path for path in paths if path in ignored} == {path for path in paths if hidden(path, pattern)}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    git = need_program("git", "git")
    directory = tmp_path_factory.mktemp("repository")
    subprocess.run([git, "init", "--quiet", str(directory)], check=True)
    return directory


@pytest.mark.parametrize(
    "pattern",
    [
        "*a" * 100 + "b",
        "**/" * 100 + "b",
        "/".join(["**", "a"] * 100),
        "[ab]*" * 100,
        "?*" * 200 + "b",
        "*" * 1000 + "b",
    ],
)
def test_no_pattern_hangs(pattern: str) -> None:
    """Each of these keeps a backtracking matcher busy for longer than the universe is old."""
    started = time.process_time()
    hidden("a" * 255, pattern)
    hidden("/".join("a" * 64), pattern)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("pattern", ["!", "/", "!/", "a//b", "a\\", "[[:alpha:]]", "[z-a]", "x" * 2000, "a\nb", "a\0b"])
def test_what_is_no_pattern_is_refused_by_name(pattern: str) -> None:
    """It would match nothing, which is not what anybody meant."""
    with pytest.raises(InvalidRequest) as caught:
        hidden("a", pattern)
    assert repr(pattern)[:20] in str(caught.value)


def test_patterns_that_take_too_long_for_an_artifact_are_refused() -> None:
    """Each may be matched in no time; all of the longest with all names of the largest artifact would take an hour."""
    patterns = tuple("/".join(["**", f"*{number % 10}*a"] * 60) for number in range(MAX_PATTERNS))
    slow, usual = Filter(View(exclude=patterns)), Filter(View(exclude=("*.bin", "docs/**", "!keep.bin")))
    path = "/".join(["a" * 200] * 15)

    with pytest.raises(InvalidRequest, match="too long"):
        all(not slow.hides(path) for _ in range(100))
    assert not any(usual.hides(f"a/b/c/{number}.safetensors") for number in range(10_000))


def test_too_many_patterns_are_refused() -> None:
    """Each costs time for each file."""
    with pytest.raises(InvalidRequest):
        hidden("a", *["b"] * (MAX_PATTERNS + 1))


@given(pattern=st.text(max_size=40), path=PATHS)
def test_any_text_is_a_pattern_or_refused(pattern: str, path: str) -> None:
    """Nothing but InvalidRequest comes out."""
    with contextlib.suppress(InvalidRequest):
        hidden(path, pattern)
