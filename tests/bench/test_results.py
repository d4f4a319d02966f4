"""Figures: medians, spreads, targets, and how they are written."""

from __future__ import annotations

import msgspec
import pytest

from bench.results import Result, Unit, quantile, ratios, shown


def figure(*samples: float, **fields: object) -> Result:
    return Result(**{"what": "a read", "unit": "ratio", "samples": samples, **fields})


def test_a_figure_is_the_median_of_its_rounds() -> None:
    """One bad round moves the spread and not the figure."""
    result = figure(0.9, 0.1, 0.95)

    assert ("0.900", "0.100 to 0.950") == (result.measured, result.spread)


def test_one_round_has_no_spread() -> None:
    """Lowest and highest of a single sample would say nothing."""
    assert "" == figure(0.9).spread


@pytest.mark.parametrize(
    ("samples", "bound", "verdict"),
    [
        ((0.97,), "at least", "reached"),
        ((0.969,), "at least", "MISSED"),
        ((0.97,), "at most", "reached"),
        ((0.971,), "at most", "MISSED"),
        ((0.1, 0.98, 0.99), "at least", "reached"),
    ],
)
def test_the_median_is_what_must_reach_the_target(samples: tuple[float, ...], bound: str, verdict: str) -> None:
    """The bound itself reaches it; the spread does not count."""
    result = figure(*samples, target=0.97, bound=bound)

    assert (verdict, verdict == "reached") == (result.verdict, result.reached)
    assert f"{bound} 0.970" == result.wanted


def test_what_has_no_target_is_neither_reached_nor_missed() -> None:
    """It counts as reached for the exit code, and shows nothing."""
    result = figure(3.0)

    assert (True, "", "") == (result.reached, result.verdict, result.wanted)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.9666, "ratio", "0.967"),
        (0.00123, "seconds", "1.23 ms"),
        (0.1236, "seconds", "124 ms"),
        (0.9996, "seconds", "1.00 s"),
        (12.34, "seconds", "12.3 s"),
        (99.97, "seconds", "100 s"),
        (256e6, "bytes", "256 MB"),
        (1.234e9, "bytes/s", "1.23 GB/s"),
        (0.0123, "share", "1.23%"),
        (0.0, "count", "0"),
    ],
)
def test_values_are_written_in_their_unit(value: float, unit: Unit, text: str) -> None:
    """Three digits that matter, whatever the size."""
    assert text == shown(value, unit)


def test_ratios_are_of_each_round() -> None:
    """Not of the medians; rounds that do not match are a mistake."""
    assert (0.5, 2.0) == ratios([1.0, 4.0], [2.0, 2.0])
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


def test_a_quantile_is_a_value_that_was_measured() -> None:
    """Of 400 values, four are beyond the 99th percentile."""
    values = list(range(400, 0, -1))

    assert (396, 200, 400, 7) == (
        quantile(values, 0.99),
        quantile(values, 0.5),
        quantile(values, 1),
        quantile([7], 0.5),
    )


def test_results_are_kept_as_json() -> None:
    """What is read again is what was written."""
    result = figure(1.0, 2.0, target=1.5, chart="cold", label="mount", trace=((0.0, 0.0), (0.5, 33.5)))

    assert result == msgspec.json.decode(msgspec.json.encode(result), type=Result)
