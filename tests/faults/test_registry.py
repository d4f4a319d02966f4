"""What a registry can do to a reader: make it wait, or make it fail where nothing would heal; never give it a wrong byte.

One plugin and one registry for all; each fault gets an artifact of its own, none of whose bytes is in the cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.faults import scale
from tests.faults.arena import Arena, arena, end_reader, read_once, report_of, start_reader
from tests.faults.content import MIB, Model
from tests.faults.registryprocess import Registry
from tests.support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.slow, scale.LIMIT]


@pytest.fixture(scope="module")
def here() -> Iterator[Arena]:
    # --plain-http lets a node go to loopback: the object store is there too, and no hosts.toml names it.
    with arena(Model(seed=0, mebibytes=5, shards=1), "--plain-http", tokens=True) as made:
        yield made


@pytest.fixture
def model(here: Arena, request: pytest.FixtureRequest) -> Iterator[Model]:
    """Of small files, which are verified before their first byte, and two others. The registry is well again afterwards."""
    chance = scale.chance(request.node.name)
    yield Model(seed=chance.randrange(1 << 30), mebibytes=11, shards=2)
    here.registry.heal()
    here.registry.rate(None)


_names = itertools.count(1)


def publish(here: Arena, model: Model) -> str:
    """Publishes it without background transfers; the volume's name."""
    name = f"border-{next(_names)}"
    here.publish(name, here.registry.serve(model, f"models/{name}"))
    return name


WAITS = (
    "cut@0 cut@1 cut@500000 cut@1048576 cut@3000000",
    "500 503 502 504 ok 500",
    "429;1 ok 429",
    "wrong-range late-range extra wrong-range",
    "no-range no-range ok",
    "redirect redirect redirect redirect",
    "slow@4000000 slow@2000000 cut@70000",
)
"""As `tests/support/registry.py` reads them, one word a request; then all is well."""
LONG_WAITS = ("stall@0 stall@300000 ok stall@1048576", "hang ok hang", "slow@700000 slow@500000", "429;5 429;5")


@pytest.mark.parametrize("words", WAITS)
def test_a_passing_fault_is_a_wait(here: Arena, model: Model, words: str) -> None:
    """Every byte is right, late; each fault of the script has been met."""
    name = publish(here, model)
    before = len(here.registry.faults_used("blob"))
    here.registry.script("blob", words)
    report = read_once("whole", here.node.target(name), model)
    assert [] == report.errors + report.wrong
    here.registry.heal()  # what hangs is noted when it is let go
    expected = [word for word in words.split() if word != "ok"]
    until(lambda: expected == here.registry.faults_used("blob")[before:], "every fault was met")
    here.unpublish(name)


@scale.only_full
@pytest.mark.parametrize("words", LONG_WAITS)
def test_a_long_fault_is_a_long_wait(here: Arena, model: Model, words: str) -> None:
    """The same for those that take many seconds to be told from a slow answer."""
    test_a_passing_fault_is_a_wait(here, model, words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blow:
    """Something that happens while bytes are on their way. `before`: how all blobs are answered until then, and afterwards."""

    strike: Callable[[Registry], None]
    before: str = "ok"


BLOWS = {
    "all tokens are revoked": Blow(strike=lambda registry: registry.do("revoke_tokens")),
    "redirects expire": Blow(strike=lambda registry: registry.do("expire_signatures"), before="redirect"),
    "all connections are cut": Blow(strike=lambda registry: registry.do("end_connections")),
    "it is killed, and started again": Blow(strike=lambda registry: registry.restart()),
}


@pytest.mark.parametrize("name", BLOWS)
def test_what_happens_in_the_middle_is_a_wait(here: Arena, model: Model, name: str) -> None:
    """Every byte is right, although each request that was under way came to nothing."""
    blow, registry = BLOWS[name], here.registry
    volume = publish(here, model)
    registry.script("blob", blow.before, forever=True)
    registry.rate(6_000_000)
    reader = start_reader("whole", here.node.target(volume), model)
    try:
        for part in (1, 2, 3):
            until(lambda part=part: registry.bytes_sent(model) > part * 2 * MIB, "bytes come")  # type: ignore[misc]
            blow.strike(registry)
            if name.startswith("it is killed"):
                break  # its counters are gone too
        registry.rate(None)
        report = report_of("whole", reader, 60)
    finally:
        end_reader(reader)
    assert [] == report.errors + report.wrong
    here.unpublish(volume)


@pytest.mark.parametrize("words", ["404", "403", "401", "400"])
def test_what_cannot_heal_is_an_error_and_no_byte(here: Arena, model: Model, words: str) -> None:
    """A blob that is not there, or not for these credentials, is EIO at once; the files' names and sizes stay."""
    name = publish(here, model)
    here.registry.script("blob", words, forever=True)
    report = read_once("whole", here.node.target(name), model)
    assert [] == report.wrong
    assert {"EIO"} == {error.rpartition(": ")[2] for error in report.errors}
    assert 0 == report.bytes_read
    here.unpublish(name)


def test_wrong_bytes_of_small_files_are_never_seen(here: Arena, model: Model) -> None:
    """They are compared with their digest before anybody sees them: EIO, for every read."""
    small = Model(seed=model.seed, mebibytes=0, shards=0)
    name = publish(here, small)
    here.registry.script("blob", "corrupt", forever=True)
    report = read_once("whole", here.node.target(name), small)
    assert [] == report.wrong
    assert {"EIO"} == {error.rpartition(": ")[2] for error in report.errors}
    assert 0 == report.bytes_read
    here.unpublish(name)


def test_wrong_bytes_of_large_files_end_in_an_error(here: Arena, model: Model) -> None:
    """Without a chunk index they are as good as the connection until the whole is there; from then on every read is EIO."""
    name = publish(here, model)
    here.registry.script("blob", "corrupt", forever=True)
    target = here.node.target(name)
    read_once("whole", target, model)

    def refused() -> bool:
        report = read_once("whole", target, model)
        return bool(report.errors) and not report.wrong and not report.bytes_read

    until(refused, "wrong blobs are in quarantine", within_s=30)
    here.unpublish(name)
