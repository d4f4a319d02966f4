"""The charts of the report: bars for rates, lines for what came when. matplotlib is imported only to draw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from bench.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS: Final = "#1f6fb2"
_PEER: Final = "#9a9a9a"
_INCHES: Final = 8.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    name: str
    """A `Result.chart`, and the name of the picture."""
    family: str
    """Under which heading of the report it stands."""
    title: str
    kind: Literal["bars", "lines"] = "bars"


CHARTS: Final = (
    Chart(name="cold", family="sequential", title="Cold sequential read, against curl of the same bytes to a file"),
    Chart(name="progress", family="loading", title="Loading a cold model at 200 MB/s", kind="lines"),
    Chart(name="loaders", family="loaders", title="Loaders on a cold mount, unlimited loopback"),
    Chart(name="warm", family="warm", title="Reading what is complete on the node, page cache empty"),
)


def of(chart: Chart, results: Iterable[Result]) -> list[Result]:
    """What the chart shows."""
    return [result for result in results if result.chart == chart.name]


def draw(chart: Chart, results: Sequence[Result], path: Path) -> None:
    """A PNG that is the same for the same results."""
    from matplotlib.figure import Figure

    height = 4.0 if chart.kind == "lines" else 1.1 + 0.42 * len(results)
    figure = Figure(figsize=(_INCHES, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(chart.title, fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    if chart.kind == "lines":
        _lines(axes, results)
        # Below: anywhere else it would lie on a line.
        figure.legend(fontsize=9, frameon=False, loc="outside lower left", ncols=2)
    else:
        _bars(axes, results)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _bars(axes: Axes, results: Sequence[Result]) -> None:
    """Rates: medians, with a line from the lowest to the highest."""
    values = [result.value / 1e6 for result in results]
    spread = [
        [(result.value - min(result.samples)) / 1e6 for result in results],
        [(max(result.samples) - result.value) / 1e6 for result in results],
    ]
    places = range(len(results))
    bars: Any = axes.barh(
        places,
        values,
        xerr=spread,
        height=0.62,
        color=[_PEER if result.peer else _OURS for result in results],
        error_kw={"ecolor": "#333333", "capsize": 3, "lw": 1},
    )
    axes.bar_label(bars, labels=[result.measured for result in results], padding=6, fontsize=9)
    axes.set_yticks(places, [result.label for result in results])
    axes.invert_yaxis()
    axes.margins(x=0.16)
    axes.set_xlim(left=0)
    axes.set_xlabel("MB/s", fontsize=9)


def _lines(axes: Axes, results: Sequence[Result]) -> None:
    """What was loaded when; what has no trace is a moment."""
    for result in results:
        colour = _PEER if result.peer else _OURS
        name = f"{result.label}: {result.measured}"
        if result.trace:
            seconds, megabytes = zip(*result.trace, strict=True)
            axes.plot(seconds, megabytes, drawstyle="steps-post", color=colour, lw=2, label=name)
        else:
            axes.axvline(result.value, color=colour, lw=1.2, ls=_DASHES[len(axes.lines) % len(_DASHES)], label=name)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds after the beginning", fontsize=9)
    axes.set_ylabel("MB loaded", fontsize=9)


_DASHES: Final = ("--", ":")
