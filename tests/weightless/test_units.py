"""Sizes and durations as people write and read them."""

from __future__ import annotations

import pytest

from fuse.errors import InvalidRequest
from weightless import units


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1kB", 1000),
        ("500GB", 500 * 10**9),
        ("1.5 TiB", 3 * 2**39),
        ("2g", 2 * 10**9),
        ("500Gi", 500 * 2**30),
    ],
)
def test_a_size_is_a_number_and_a_unit(text, expected):
    """Decimal and binary units, in either case, with or without a space."""
    assert expected == units.parse_size(text)


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "5 parsecs", "1e9", "0x10", "1GB "[:3] + "!"])
def test_what_is_no_size_is_refused(text):
    """Nothing is guessed."""
    with pytest.raises(InvalidRequest):
        units.parse_size(text)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (1234, "1.23 kB"),
        (12_345, "12.3 kB"),
        (999_499, "999 kB"),
        (999_999, "1.00 MB"),
        (90_868_376, "90.9 MB"),
        (10**12, "1.00 TB"),
        (5 * 10**18, "5000 PB"),
    ],
)
def test_sizes_are_shown_with_three_digits(count, expected):
    """Never more than one needs, and never 1000 of a unit that has a larger one."""
    assert expected == units.size(count)


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.1234, "0.12 s"), (34.4, "34 s"), (320, "5 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_are_shown_as_one_says_them(seconds, expected):
    """Fractions only where they matter."""
    assert expected == units.duration(seconds)
