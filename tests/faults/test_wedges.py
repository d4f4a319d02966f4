"""A process that lives and does nothing: stopped, as by a debugger, a frozen cgroup or a bug."""

from __future__ import annotations

import signal

import pytest

from tests.faults import processes, scale
from tests.faults.arena import arena
from tests.faults.content import Model
from tests.support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.slow, scale.LIMIT]


@scale.only_full
@pytest.mark.parametrize("kind", ["worker", "fetcher"])
def test_a_wedged_process_is_replaced(request: pytest.FixtureRequest, kind: processes.Kind) -> None:
    """SIGSTOP: another one takes its place, and readers see a longer pause."""
    chance = scale.chance(request.node.name)

    def strike() -> None:
        pid = here.one(kind)
        processes.kill([pid], signal.SIGSTOP)
        try:
            until(lambda: [other for other in here.pids(kind) if other != pid], f"another {kind}", within_s=60)
        finally:
            processes.kill([pid], signal.SIGCONT)

    with arena(Model(seed=chance.randrange(1 << 30), mebibytes=24)) as here:
        here.try_under_readers(f"{kind}, SIGSTOP", chance, strike, times=2)
