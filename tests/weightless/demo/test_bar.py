"""A file's blocks as a bar."""

from __future__ import annotations

import pytest

from weightless.demo.bar import bar


@pytest.mark.parametrize(
    ("present", "width", "expected"),
    [
        ([], 10, ""),
        ([True, False], 10, "█·"),
        ([True] * 8, 4, "████"),
        ([True, False, False, False, True, True, True, True], 4, "▒·██"),
        ([False] * 99 + [True], 10, "·········▒"),
    ],
)
def test_each_character_stands_for_an_equal_share_of_the_blocks(present, width, expected):
    """Full, in part or nothing; a single block of a large file is still seen."""
    assert expected == bar(present, width)
