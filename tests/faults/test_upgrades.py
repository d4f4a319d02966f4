"""Upgrade and rollback under readers: two versions by turns on the same state, cache, keeper and run directory."""

from __future__ import annotations

import pytest

from csi.pb import csi_pb2
from tests.faults import nextversion, processes, scale
from tests.faults.arena import arena
from tests.faults.content import Model
from weightless import __version__

pytestmark = [pytest.mark.kernel, pytest.mark.slow, scale.LIMIT]


def test_upgrades_and_rollbacks(request: pytest.FixtureRequest) -> None:
    """The plugin of one version ends, by SIGTERM and by kill -9 in turn, and that of the other goes on with everything.

    In each turn another pod's volume of the same model is published, and what the other version published before is unpublished:
    each reads the other's records. Readers see the same inode numbers and the same bytes throughout.
    """
    chance = scale.chance(request.node.name)
    model = Model(seed=chance.randrange(1 << 30), mebibytes=scale.by_scale(short=24, full=512), shards=4)
    with arena(model) as here:
        copy = nextversion.make(here.box.root / "next")
        turns = 0

        def strike() -> None:
            nonlocal turns
            turns += 1
            version = (__version__, nextversion.VERSION)[turns % 2]
            if turns % 4 < 2:
                here.node.stop()
            else:
                processes.kill(here.pids("plugin", "worker"))
                here.node.kill()
            here.node.environment = {"PYTHONPATH": str(copy)} if turns % 2 else {}
            here.node.start()
            info = here.node.identity.GetPluginInfo(csi_pb2.GetPluginInfoRequest(), timeout=5)
            assert version == info.vendor_version
            here.publish(f"turn-{turns}", here.reference)
            if turns > 1:
                here.unpublish(f"turn-{turns - 1}")

        lasting_s = scale.by_scale(short=0.0, full=300.0)
        here.try_under_readers("upgrade and rollback", chance, strike, times=4, lasting_s=lasting_s)
