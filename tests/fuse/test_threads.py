"""A system that has no room for one more thread: what counts on one that never began goes on, or is tried again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from os import kill
from pathlib import Path

import pytest

from fuse import threads, wire
from fuse.cache.keys import BlobKey
from fuse.errors import Unavailable
from fuse.fetch import protocol
from fuse.fetch.copier import Copier
from fuse.fetch.proofs import Proofs
from fuse.fetch.server import Connection
from fuse.fetch.session import Session
from tests.support.adminfetcher import content_of
from tests.support.fetcher import Admin
from tests.support.fetchrig import CONTENT, DIGEST, SCOPE, Rig
from tests.support.holders import place
from tests.support.registry import FaultyRegistry
from tests.support.waiting import until

Refusing = Callable[[str], list[str]]


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Refusing:
    """No room for the next thread whose name begins so; the names of those that were refused."""
    start = threading.Thread.start

    def refuse(name: str) -> list[str]:
        refused: list[str] = []

        def full(thread: threading.Thread) -> None:
            if thread.name.startswith(name) and not refused:
                refused.append(thread.name)
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", full)
        return refused

    return refuse


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    (tmp_path / "c").mkdir()
    with FaultyRegistry() as registry:
        registry.add_blob(CONTENT)
        rig = Rig(tmp_path / "c", registry)
        yield rig
        rig.close()


def test_a_thread_begins_or_does_not(refusing: Refusing) -> None:
    """And says so."""
    refused = refusing("mine")
    assert not threads.begin(threading.Thread(target=int, name="mine"))
    thread = threading.Thread(target=int, name="mine")
    assert threads.begin(thread)
    thread.join()
    assert ["mine"] == refused


def test_a_session_that_cannot_be_served_is_hung_up_on(rig: Rig, refusing: Refusing) -> None:
    """The holder is told, and asks again; nothing of the first one is left, and it can be taken down."""
    mount = rig.engine.attach("m", [BlobKey(DIGEST, len(CONTENT), SCOPE)])
    rig.mounts.append(mount)
    ours, theirs = wire.pair()
    session = Session(rig.engine, mount, theirs)
    refusing("session")
    with ours:
        with pytest.raises(Unavailable, match="no thread"):
            session.start()
        assert not mount.ports
        assert not ours.recv(1)
    session.close()
    session.join()


def test_a_long_request_that_cannot_begin_takes_no_place(rig: Rig, refusing: Refusing) -> None:
    """It is refused, and may be asked again under the same number."""
    ours, theirs = wire.pair()
    ended = threading.Event()
    copier = Copier(rig.engine.shelf, rig.engine.dispatch)
    proofs = Proofs(rig.store.objects, rig.store.directory("sha256"))
    served = Connection(theirs, rig.engine, rig.transport, proofs, copier, lambda _: ended.set())
    served.start()
    refusing("request")
    with Admin(ours) as admin:
        with pytest.raises(Unavailable, match="no thread"):
            admin.ask(protocol.CacheList)
        assert not served._long
        assert admin.blobs(protocol.CacheList) == []
    assert ended.wait(10)
    theirs.close()


@pytest.mark.kernel
def test_a_mount_is_mended_all_the_same(monkeypatch: pytest.MonkeyPatch, refusing: Refusing) -> None:
    """Whoever looks at a mount on which requests wait tries again, and the dead worker is replaced."""
    with place(monkeypatch) as here:
        manager = here.manager(look_s=0.05)
        mount_id, path = here.mount(manager)
        pid = manager.status(mount_id).worker_pid
        assert pid is not None
        refused = refusing("repair")
        kill(pid, signal.SIGKILL)
        until(lambda: refused, "the repair to be refused")
        assert (path / "model.bin").read_bytes() == content_of("registry.example/m:v1")


@pytest.mark.kernel
def test_a_worker_that_cannot_be_given_a_session_is_replaced(
    monkeypatch: pytest.MonkeyPatch, refusing: Refusing
) -> None:
    """It has lost its fetcher: its successor gets one with everything else."""
    with place(monkeypatch) as here:
        manager = here.manager(look_s=0.05)
        mount_id, path = here.mount(manager)
        mount = manager._mounts[mount_id]
        assert mount.worker is not None
        refused = refusing("attach")
        manager._supervisor._session_lost(mount, mount.worker, mount.worker.sessions)
        assert refused
        assert (path / "model.bin").read_bytes() == content_of("registry.example/m:v1")
