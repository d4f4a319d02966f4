"""The page of what was measured, from results to Markdown."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from bench import charts, report
from bench.machine import Machine
from bench.report import Findings
from bench.results import Result
from bench.run import BENCHMARKS, DESCRIPTIONS

MACHINE = Machine(kernel="6.18.44", processor="Some CPU", cores=2, memory_bytes=16 * 10**9, python="3.11.7")
CURL = Result(what="curl | file", unit="bytes/s", samples=(2e8, 1e8, 3e8))
COLD = Result(what="  mount / curl", unit="ratio", samples=(0.98,), target=0.97, bound="at least")
SLOW = Result(what="  read / GET", unit="ratio", samples=(3.0, 4.0), target=1.5)
WORDS = {"sequential": "Reads\nin order.\n\nTwice.", "random_reads": "Reads at random."}


def findings(**families: tuple[Result, ...]) -> Findings:
    return Findings(machine=MACHINE, families=families)


def test_the_page_has_each_figure_with_spread_target_and_verdict() -> None:
    """A row a figure, those under another marked; what a docstring says, unwrapped, above them."""
    page = report.page(findings(sequential=(CURL, COLD)), WORDS)

    assert "## Sequential\n\nReads in order.\n\nTwice.\n" in page
    assert "| curl \\| file | 200 MB/s | 100 MB/s to 300 MB/s |  |  |\n" in page
    assert "| · mount / curl | 0.980 |  | at least 0.970 | reached |\n" in page
    assert "2 cores (Some CPU), 16.0 GB of memory, Linux 6.18.44, Python 3.11.7." in page


def test_the_page_says_first_what_was_missed() -> None:
    """With a link to where it is measured, so that nobody has to look for it."""
    page = report.page(findings(sequential=(COLD,), random_reads=(SLOW,)), WORDS)

    before = page.partition("\n## ")[0]
    assert "**1 of 2 targets are reached.** Missed:\n" in before
    assert "- [Random reads](#random-reads): read / GET: 3.500, at most 1.500 is wanted\n" in before
    assert "| · read / GET | 3.500 | 3.000 to 4.000 | at most 1.500 | **missed** |" in page


def test_nothing_missed_needs_no_list() -> None:
    """One line says it."""
    page = report.page(findings(sequential=(COLD,)), WORDS)

    assert "**1 of 1 targets are reached.**\n" in page
    assert "Missed" not in page


def test_the_order_is_that_of_the_descriptions() -> None:
    """Not that in which families were measured."""
    page = report.page(findings(random_reads=(SLOW,), sequential=(COLD,)), WORDS)

    assert page.index("## Sequential") < page.index("## Random reads")


def test_a_chart_stands_in_the_family_that_feeds_it() -> None:
    """And nowhere where nothing was measured for it."""
    cold = Result(what="cold", unit="bytes/s", samples=(1.0,), chart="cold", label="mount")
    page = report.page(findings(sequential=(cold,), random_reads=(SLOW,)), WORDS)

    assert ["cold"] == [chart.name for chart in charts.CHARTS if f"(benchmarks/{chart.name}.png)" in page]
    assert page.index("benchmarks/cold.png") < page.index("## Random reads")


def test_what_was_measured_before_stays_until_it_is_measured_again(tmp_path: Path) -> None:
    """One family can be measured anew, on a machine like the one of the others."""
    before = findings(sequential=(COLD,), random_reads=(SLOW,))
    report.write(tmp_path, before, WORDS)

    again = report.load(tmp_path, MACHINE).having("sequential", [CURL])

    assert findings(sequential=(CURL,), random_reads=(SLOW,)) == again
    other = msgspec.structs.replace(MACHINE, kernel="7.0")
    assert Findings(machine=other) == report.load(tmp_path, other)


def test_small_sizes_are_told_and_mixed_with_none(tmp_path: Path) -> None:
    """Whoever tried the code does not publish its figures by mistake."""
    small = msgspec.structs.replace(MACHINE, full=False)

    report.write(tmp_path, Findings(machine=small, families={"sequential": (COLD,)}), WORDS)

    assert "the figures mean nothing" in (tmp_path / "benchmarks.md").read_text()
    assert "the figures mean nothing" not in report.page(Findings(machine=MACHINE), WORDS)
    assert Findings(machine=MACHINE) == report.load(tmp_path, MACHINE)


@pytest.mark.parametrize("content", [None, b"{", b'{"machine": 1}'])
def test_what_cannot_be_read_is_measured_anew(tmp_path: Path, content: bytes | None) -> None:
    """No file yet, or one of another version."""
    if content is not None:
        (tmp_path / "benchmarks").mkdir()
        (tmp_path / "benchmarks" / "results.json").write_bytes(content)

    assert Findings(machine=MACHINE) == report.load(tmp_path, MACHINE)


def test_the_same_findings_make_the_same_page(tmp_path: Path) -> None:
    """Byte for byte, the samples too, so that a commit shows what has changed."""
    written = []
    for found in (
        findings(sequential=(COLD,), random_reads=(SLOW,)),
        findings(random_reads=(SLOW,), sequential=(COLD,)),
    ):
        report.write(tmp_path, found, WORDS)
        written.append([(tmp_path / name).read_bytes() for name in ("benchmarks.md", "benchmarks/results.json")])

    assert written[0] == written[1]


def test_every_benchmark_is_described_and_every_chart_has_a_family() -> None:
    """What the page says of a family is its module's docstring."""
    assert list(BENCHMARKS) == list(DESCRIPTIONS)
    assert all(DESCRIPTIONS.values())
    assert {chart.family for chart in charts.CHARTS} <= set(BENCHMARKS)


def test_a_machine_has_no_name() -> None:
    """Neither that of its host nor what a builder put into the kernel's."""
    here = Machine.here()

    assert here.kernel.replace(".", "").isdecimal()
    assert str(here).startswith(f"{here.cores} core")
