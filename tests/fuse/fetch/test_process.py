"""`python -m fuse.fetch` as a process: who may talk to it, what survives it, when it ends."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse import wire
from fuse.artifact.digest import Digest
from fuse.cache.store import CacheStore
from fuse.errors import (
    Cancelled,
    Conflict,
    InvalidArtifact,
    InvalidReference,
    InvalidRequest,
    NotFound,
    Unavailable,
    WeightlessError,
    from_fault,
)
from fuse.fetch import protocol, server
from fuse.filesystem.table import decode, encode, identity
from tests.support.fetcher import Admin, FetcherProcess, access_to, pattern, table_of, wait_until
from tests.support.registry import FaultyRegistry
from weightless.demo.pack import pack_model

MIB = 1024 * 1024
CONTENT = pattern(20 * MIB + 7)
DIGEST = Digest.of(CONTENT)
BLOB = (DIGEST, len(CONTENT))
NOBODY = 65534


@pytest.fixture
def registry() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        registry.add_blob(CONTENT)
        yield registry


@pytest.fixture
def fetcher(tmp_path: Path) -> Iterator[FetcherProcess]:
    with FetcherProcess(tmp_path / "cache") as fetcher:
        yield fetcher


def fetch_all(admin: Admin, registry: FaultyRegistry, mount: str = "m") -> None:
    with admin.attach(mount, [BLOB], registry.url) as worker:
        admin.grant(mount, registry.url)
        worker.open()
        assert worker.demand(0, 0, 21) == CONTENT
        files = worker.files[0]
        assert files is not None
        wait_until(lambda: files.verified, "the blob to be verified")


def status_of(pid: int, key: str) -> list[str]:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return line.split()[1:]
    return []


def test_a_mount_is_attached_granted_and_read(fetcher: FetcherProcess, registry: FaultyRegistry) -> None:
    """Hello, Attach, Grant, Open, Want, Progress: the whole way, and the fetcher ends with its administrator."""
    with fetcher.connect() as admin:
        welcome = admin.ask(protocol.Hello)
        assert (welcome.pid, welcome.version) == (fetcher.process.pid, protocol.VERSION)
        fetch_all(admin, registry)
        progress = admin.progress("m")
        assert (progress.bytes_cached, progress.bytes_total, progress.verified_blobs) == (len(CONTENT), len(CONTENT), 1)
        assert progress.bytes_fetched == len(CONTENT)
        admin.ask(protocol.Detach, mount="m")
        with pytest.raises(NotFound):
            admin.progress("m")
    assert fetcher.process.wait(5) == 0
    assert not (fetcher.cache / protocol.SOCKET_NAME).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="dropping privileges needs root")
def test_started_by_root_it_becomes_nobody(fetcher: FetcherProcess, registry: FaultyRegistry) -> None:
    """No uid 0, no groups, no capabilities, no way back; what it writes is its own; its parents may be closed to it."""
    fetcher.cache.parent.chmod(0o700)
    with fetcher.connect() as admin:
        fetch_all(admin, registry)
        pid = fetcher.process.pid
        assert set(status_of(pid, "Uid") + status_of(pid, "Gid")) == {str(NOBODY)}
        assert status_of(pid, "Groups") == []
        assert status_of(pid, "NoNewPrivs") == ["1"]
        assert {int(*status_of(pid, key), base=16) for key in ("CapPrm", "CapEff", "CapAmb")} == {0}
        files = list((fetcher.cache / "blobs" / "sha256").iterdir())
        assert {(path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) for path in files} == {(NOBODY, 0o444)}
        assert stat.S_IMODE(fetcher.cache.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="being several users needs root")
def test_only_its_starter_and_root_administer_it() -> None:
    """The user that it became, as whom workers run, cannot; nor can anybody else."""
    directory = Path(tempfile.mkdtemp())
    try:
        directory.chmod(0o755)
        with FetcherProcess(directory / "cache") as fetcher, fetcher.connect():
            (directory / "cache").chmod(0o755)
            (directory / "cache" / protocol.SOCKET_NAME).chmod(0o666)  # even if the door stood open
            for uid in (NOBODY, 1234):
                refused = subprocess.run(
                    ["python3", "-c", _KNOCK, str(directory / "cache" / protocol.SOCKET_NAME)],
                    user=uid, group=uid, extra_groups=[], capture_output=True, check=False,
                )  # fmt: skip
                assert refused.stdout == b"closed\n", refused
    finally:
        shutil.rmtree(directory)


_KNOCK = """
import socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.settimeout(5)
sock.connect(sys.argv[1])
try:
    sock.send(b'{"op":"hello","id":1}')
    print("answered" if sock.recv(1000) else "closed")
except OSError:
    print("closed")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_a_user_without_privileges_has_a_fetcher_of_its_own(registry: FaultyRegistry) -> None:
    """Started by an ordinary user it stays that user, and serves it and root."""
    directory = Path(tempfile.mkdtemp())
    try:
        os.chown(directory, 1234, 1234)
        with FetcherProcess(directory / "cache", user=1234) as fetcher, fetcher.connect() as admin:
            assert set(status_of(fetcher.process.pid, "Uid")) == {"1234"}
            fetch_all(admin, registry)
    finally:
        shutil.rmtree(directory)


def test_the_cache_survives_kill_9(tmp_path: Path, registry: FaultyRegistry) -> None:
    """A fetcher killed in the middle loses nothing that was published; the next one fetches only the rest."""
    registry.rate.bytes_per_s = 20e6
    with (
        FetcherProcess(tmp_path / "cache") as fetcher,
        fetcher.connect() as admin,
        admin.attach("m", [BLOB], registry.url) as worker,
    ):
        admin.grant("m", registry.url)
        files = worker.open()
        assert files is not None
        worker.want(0, 0, 21, "background")
        wait_until(lambda: 21 - sum(count for _, count in files.missing(0, 21)) >= 5, "some blocks")
        fetcher.process.send_signal(signal.SIGKILL)
        fetcher.process.wait()
        kept = sum(count for _, count in files.missing(0, 21))
        worker.wait(lambda: worker.gone, "the session to hang up")
    registry.rate.bytes_per_s = None
    with FetcherProcess(tmp_path / "cache") as fetcher, fetcher.connect() as admin:
        fetch_all(admin, registry)
        assert admin.progress("m").bytes_fetched <= kept * MIB


def test_a_finished_cache_needs_no_registry(tmp_path: Path, registry: FaultyRegistry) -> None:
    """After a restart a verified blob is read without a single request, and stays verified."""
    with FetcherProcess(tmp_path / "cache") as fetcher, fetcher.connect() as admin:
        fetch_all(admin, registry)
    registry.stop()
    with FetcherProcess(tmp_path / "cache") as fetcher, fetcher.connect() as admin:
        fetch_all(admin, registry)
        assert admin.progress("m").requests == 0


def test_torn_blocks_of_a_power_loss_are_fetched_anew(tmp_path: Path, registry: FaultyRegistry) -> None:
    """Entries whose data never reached the disk cost a fetch, not a wrong byte, and condemn nobody."""
    with (
        FetcherProcess(tmp_path / "cache") as fetcher,
        fetcher.connect() as admin,
        admin.attach("m", [BLOB], registry.url) as worker,
    ):
        admin.grant("m", registry.url)
        worker.open()
        worker.demand(0, 0, 20)
    (data,) = (tmp_path / "cache" / "blobs" / "sha256").glob("*.data")
    with data.open("r+b") as file:
        for block in (0, 3, 11):
            file.seek(block * MIB + 4096)
            file.write(bytes(4096))
    with (
        FetcherProcess(tmp_path / "cache") as fetcher,
        fetcher.connect() as admin,
        admin.attach("m", [BLOB], registry.url) as worker,
    ):
        admin.grant("m", registry.url)
        files = worker.open()
        assert files is not None
        for block in (0, 3, 11):
            if files.has(block):  # the check of the whole may have been there first
                assert not files.check(block)
                worker.channel.send(protocol.Damaged(blob=0, first=block, count=1))
        assert worker.demand(0, 0, 21) == CONTENT
        wait_until(lambda: files.verified, "the blob to be verified")
        assert not worker.quarantined


def test_two_administrators_share_one_fetch(fetcher: FetcherProcess, registry: FaultyRegistry) -> None:
    """Mounts are each connection's own, blobs are everybody's; the fetcher lives until the last one goes."""
    with fetcher.connect() as one:
        with fetcher.connect() as two:
            fetch_all(two, registry, "same-name")
            fetch_all(one, registry, "same-name")
            assert len({entry.request.range for entry in registry.requests("blob")}) == len(registry.requests("blob"))
        assert fetcher.process.poll() is None
        assert one.ask(protocol.Hello).pid == fetcher.process.pid
    assert fetcher.process.wait(5) == 0


@pytest.fixture
def stranger() -> Iterator[FaultyRegistry]:
    """A registry that somebody else on the node brought along."""
    with FaultyRegistry() as registry:
        yield registry


def test_a_strangers_registry_poisons_nobody_elses_blob(
    fetcher: FetcherProcess, registry: FaultyRegistry, stranger: FaultyRegistry
) -> None:
    """Who names the digest of another's blob and serves wrong bytes for it, early or late, harms himself only."""
    stranger.add_blob(CONTENT)
    stranger.script("blob", "corrupt", forever=True)
    with fetcher.connect() as admin, admin.attach("theirs", [BLOB], stranger.url) as theirs:
        admin.grant("theirs", stranger.url)
        theirs.open()
        assert theirs.demand(0, 0, 20) != CONTENT[: 20 * MIB]
        with admin.attach("ours", [BLOB], registry.url) as ours:
            admin.grant("ours", registry.url)
            ours.open()
            assert ours.demand(0, 0, 21) == CONTENT
            files = ours.files[0]
            assert files is not None
            theirs.want(0, 20)  # completes it: it is found wrong, and set aside
            theirs.wait(lambda: theirs.quarantined, "the wrong blob to be set aside")
            wait_until(lambda: files.verified, "the right one to be verified")
            assert not ours.quarantined


def test_a_strangers_registry_opens_nobody_elses_blob(
    fetcher: FetcherProcess, registry: FaultyRegistry, stranger: FaultyRegistry
) -> None:
    """Who knows a digest, and has a registry that calls it its own, reads nothing of what others' credentials have fetched."""
    with fetcher.connect() as admin, admin.attach("ours", [BLOB], registry.url) as ours:
        admin.grant("ours", registry.url)
        ours.open()
        assert ours.demand(0, 0, 21) == CONTENT
        with admin.attach("theirs", [BLOB], stranger.url) as theirs:
            admin.grant("theirs", stranger.url)
            theirs.open()
            with pytest.raises(NotFound):
                theirs.demand(0, 0)


def test_a_grant_of_another_registry_is_refused(
    fetcher: FetcherProcess, registry: FaultyRegistry, stranger: FaultyRegistry
) -> None:
    """A mount's blobs come from the registry that it was attached with, whatever a caller mixes up."""
    with (
        fetcher.connect() as admin,
        admin.attach("m", [BLOB], registry.url),
        pytest.raises(Conflict, match="come from"),
    ):
        admin.grant("m", stranger.url)


def test_repositories_of_one_registry_share_a_blob(fetcher: FetcherProcess, registry: FaultyRegistry) -> None:
    """The registry decides who may pull a digest from which of its repositories; fetched once, it serves both."""
    with fetcher.connect() as admin:
        for mount, repository in (("one", "m"), ("two", "n")):
            with admin.attach(mount, [BLOB], registry.url) as worker:
                admin.grant(mount, registry.url, repository=repository)
                worker.open()
                assert worker.demand(0, 0, 21) == CONTENT
        assert len({entry.request.range for entry in registry.requests("blob")}) == len(registry.requests("blob"))


def test_a_new_worker_takes_over_the_mount(fetcher: FetcherProcess, registry: FaultyRegistry) -> None:
    """Attaching again under the same name replaces the session and keeps the grants; another table is refused."""
    with fetcher.connect() as admin, admin.attach("m", [BLOB], registry.url) as first:
        admin.grant("m", registry.url)
        with admin.attach("m", [BLOB], registry.url) as second:
            first.wait(lambda: first.gone, "the first session to end")
            second.open()
            assert second.demand(0, 0) == CONTENT[:MIB]
        with pytest.raises(Conflict):
            admin.attach("m", [(Digest.of(b"x"), 5)], registry.url)


def test_a_worker_may_not_ask_for_what_its_table_does_not_have(fetcher: FetcherProcess) -> None:
    """Another number, or nonsense, ends the session, and only that."""
    with fetcher.connect() as admin:
        for nonsense in (protocol.Want(blob=1, first=0, count=1, priority="demand"), protocol.Open(blob=-1)):
            with admin.attach("m", [BLOB]) as worker:
                worker.channel.send(nonsense)
                worker.wait(lambda worker=worker: worker.gone, "to be hung up on")
        with admin.attach("m", [BLOB]) as worker:
            worker.channel.sock.send(b"{}")
            worker.wait(lambda: worker.gone, "to be hung up on")
        assert admin.ask(protocol.Hello).pid == fetcher.process.pid


def test_a_worker_that_takes_nothing_slows_nobody(fetcher: FetcherProcess, registry: FaultyRegistry) -> None:
    """A session whose peer does not read is left behind, while another one is served."""
    with fetcher.connect() as admin:
        ours, theirs = wire.pair()
        table = wire.sealed_memfd("t", encode(table_of([BLOB])))
        try:
            fds = (theirs.fileno(), table)
            admin.ask(protocol.Attach, fds, mount="deaf", registry=registry.host)
        finally:
            theirs.close()
            os.close(table)
        admin.grant("deaf", registry.url)
        ours.settimeout(2)
        try:
            for _ in range(20000):
                ours.send(wire.encode(protocol.Want(blob=0, first=0, count=21, priority="demand")))
        except OSError:
            pass  # it hung up, or lets us wait: both are fair
        fetch_all(admin, registry)
        ours.close()


def test_resolving_gives_a_table_that_can_be_attached(
    fetcher: FetcherProcess, registry: FaultyRegistry, tmp_path: Path
) -> None:
    """A reference becomes a pinned digest and an inode table; from then on only the proof is asked of the registry."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "weights.safetensors").write_bytes(pattern(3 * MIB, seed=5))
    digest = pack_model(model, encoding="tar").serve(registry, "models/tiny", "v1")
    reference = f"{registry.host}/models/tiny:v1"
    with fetcher.connect() as admin:
        answer, fds = admin.ask_with_fds(protocol.Resolve, reference=reference, access=access_to(registry.url))
        content = wire.read_whole(fds[0], 1 << 20)
        wire.close_all(fds)
        assert answer.digest == str(digest)
        assert answer.reference == f"{reference}@{digest}"
        assert answer.table == identity(content)
        assert answer.files == 2
        assert {node.name for node in decode(content).nodes if node.kind == "f"} == {
            "config.json",
            "weights.safetensors",
        }
        before = len(registry.requests())
        again, fds = admin.ask_with_fds(protocol.Resolve, reference=reference, access=access_to(registry.url))
        wire.close_all(fds)
        assert again.table == answer.table
        assert [entry.kind for entry in registry.requests()[before:]] == ["manifest"]
        with pytest.raises(NotFound):
            admin.ask(protocol.Resolve, reference=f"{registry.host}/models/none:v1", access=access_to(registry.url))
        with pytest.raises(InvalidReference):
            admin.ask(protocol.Resolve, reference="://", access=access_to(registry.url))


def test_a_long_request_can_be_cancelled(fetcher: FetcherProcess, registry: FaultyRegistry) -> None:
    """Cancel answers the request that it names with Cancelled, once; other requests go on meanwhile."""
    registry.script("manifest", "503", forever=True)
    with fetcher.connect() as admin:
        access = access_to(registry.url)
        admin.channel.send(protocol.Resolve(id=77, reference=f"{registry.host}/a:v1", access=access))
        wait_until(lambda: registry.requests("manifest"), "the resolve to begin")
        assert admin.ask(protocol.Hello).id == 1
        admin.channel.send(protocol.Cancel(id=77))
        received = admin.channel.receive()
        assert received is not None
        assert received[0].id == 77
        assert isinstance(received[0], protocol.Refused)
        assert isinstance(from_fault(received[0].fault), Cancelled)


def test_one_registry_takes_no_place_of_anothers_requests(fetcher: FetcherProcess, registry: FaultyRegistry) -> None:
    """So many resolves may wait for one registry, and no more; those of another go on, and one that ends makes room."""
    most = server._MOST_OF_ONE_REGISTRY
    registry.script("manifest", "hang", forever=True)
    with FaultyRegistry() as other, fetcher.connect() as admin:
        for number in range(most):
            admin.channel.send(
                protocol.Resolve(id=1000 + number, reference=f"{registry.host}/a:v1", access=access_to(registry.url))
            )
        with pytest.raises(Unavailable, match=f"{most} requests to this registry"):
            admin.ask(protocol.Resolve, reference=f"{registry.host}/a:v1", access=access_to(registry.url))
        with pytest.raises(NotFound):
            admin.ask(protocol.Resolve, reference=f"{other.host}/a:v1", access=access_to(other.url))
        registry.clear_scripts()
        registry.release()
        answers = [admin.channel.receive() for _ in range(most)]
        assert {answer[0].id for answer in answers if answer is not None} == {1000 + number for number in range(most)}

        def asks() -> WeightlessError:
            with pytest.raises(WeightlessError) as refused:
                admin.ask(protocol.Resolve, reference=f"{registry.host}/a:v1", access=access_to(registry.url))
            return refused.value

        # A place is free a moment after its answer.
        wait_until(lambda: isinstance(asks(), NotFound), "there to be room again")


def test_the_cache_is_listed_verified_and_removed(fetcher: FetcherProcess, registry: FaultyRegistry) -> None:
    """CacheList, CacheVerify and CacheRemove see the same blobs; what is in use stays."""
    with fetcher.connect() as admin:
        fetch_all(admin, registry)
        (listed,) = admin.blobs(protocol.CacheList)
        assert (listed.digest, listed.bytes_cached, listed.complete, listed.verified, listed.pinned) == (
            str(DIGEST), len(CONTENT), True, True, True,
        )  # fmt: skip
        with pytest.raises(Conflict):
            admin.blobs(protocol.CacheRemove, digests=(str(DIGEST),))
        assert admin.blobs(protocol.CacheRemove) == []
        with pytest.raises(NotFound):
            admin.blobs(protocol.CacheRemove, digests=(str(Digest.of(b"unknown")),))
        with pytest.raises(InvalidArtifact):
            admin.blobs(protocol.CacheVerify, digests=("sha256:xyz",))
        assert [blob.damaged_blocks for blob in admin.blobs(protocol.CacheVerify)] == [0]
        (data,) = (fetcher.cache / "blobs" / "sha256").glob("*.data")
        with data.open("r+b") as file:
            file.seek(5 * MIB)
            file.write(b"rot")
        (verified,) = admin.blobs(protocol.CacheVerify)
        assert (verified.damaged_blocks, verified.complete, verified.verified) == (1, False, False)
        admin.ask(protocol.Detach, mount="m")
        removed = wait_until(lambda: admin.blobs(protocol.CacheRemove), "the blob to be let go")
        assert [blob.digest for blob in removed] == [str(DIGEST)]
        assert admin.blobs(protocol.CacheList) == []


def test_bad_requests_are_refused_and_do_no_harm(fetcher: FetcherProcess) -> None:
    """Other versions, missing descriptors, unknown mounts and nonsense tables are errors with words."""
    with fetcher.connect() as admin:
        with pytest.raises(InvalidRequest, match="version"):
            admin.ask(protocol.Hello, version=99, needs=99)
        with pytest.raises(InvalidRequest, match="descriptors"):
            admin.ask(protocol.Attach, mount="m", registry="r")
        with pytest.raises(NotFound):
            admin.ask(protocol.Revoke, mount="none", grant="g")
        ours, theirs = wire.pair()
        table = wire.sealed_memfd("t", b"nonsense")
        with ours, theirs, pytest.raises(InvalidArtifact):
            admin.ask(protocol.Attach, (theirs.fileno(), table), mount="m", registry="r")
        os.close(table)
        assert admin.ask(protocol.Hello).pid == fetcher.process.pid


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could give files away")
def test_root_takes_no_cache_from_another_user(tmp_path: Path) -> None:
    """Where a user can write, a file may become a hard link to one of root's at any moment: nothing is given away."""
    precious = tmp_path / "precious"
    precious.write_text("root's")
    cache = tmp_path / "cache"
    (cache / "blobs").mkdir(parents=True)
    (cache / "version").write_text("1\n")
    (cache / "blobs" / "x.data").hardlink_to(precious)
    os.chown(cache, 12345, 12345)
    with FetcherProcess(cache) as fetcher:
        assert "belongs to user 12345" in fetcher.output()
    os.chown(cache, 0, 0)
    with FetcherProcess(cache) as fetcher, fetcher.connect():
        assert precious.stat().st_uid == 0
        assert cache.stat().st_uid == NOBODY


def test_one_fetcher_a_directory(fetcher: FetcherProcess) -> None:
    """A second one on the same directory leaves at once, saying why, and the first is not disturbed."""
    with fetcher.connect() as admin:
        with FetcherProcess(fetcher.cache) as second:
            assert "another fetcher" in second.output()
            assert second.process.returncode == 1
        assert admin.ask(protocol.Hello).pid == fetcher.process.pid
        with fetcher.connect() as other:
            other.ask(protocol.Hello)


def test_a_dead_socket_file_is_no_obstacle(tmp_path: Path) -> None:
    """What a killed fetcher left is replaced."""
    with FetcherProcess(tmp_path / "cache") as killed:
        killed.connect().close()
        killed.kill()
    with FetcherProcess(tmp_path / "cache") as fetcher, fetcher.connect() as admin:
        assert admin.ask(protocol.Hello).pid == fetcher.process.pid


def test_a_disk_without_room_for_a_cache_is_one_line(tmp_path: Path) -> None:
    """What cannot be made is said without a traceback."""
    cache = tmp_path / "cache"
    (cache / ".version").mkdir(parents=True)  # In the way of a file, as a full disk is.

    with FetcherProcess(cache) as fetcher:
        said = fetcher.output()

    assert fetcher.process.returncode == 1
    assert "the cache directory cannot be used" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("kind", ["foreign", "newer", "settings"])
def test_what_it_cannot_serve_it_refuses_with_words(tmp_path: Path, kind: str) -> None:
    """A directory of other things, a newer cache, unknown settings: one line that says so, nothing changed."""
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o755)
    if kind == "foreign":
        (cache / "thesis.tex").write_text("")
    elif kind == "newer":
        (cache / "version").write_text("2")
    with FetcherProcess(cache, **({"colour": "blue"} if kind == "settings" else {})) as fetcher:
        said = fetcher.output()
    assert fetcher.process.returncode == 1
    assert {"foreign": "thesis.tex", "newer": "version 2", "settings": "colour"}[kind] in said
    assert "Traceback" not in said
    assert stat.S_IMODE(cache.stat().st_mode) == 0o755
    assert cache.stat().st_uid == os.geteuid()


def test_sigterm_ends_it_cleanly(fetcher: FetcherProcess, registry: FaultyRegistry) -> None:
    """On SIGTERM sessions are hung up on, the socket goes, and what was fetched is there."""
    with fetcher.connect() as admin, admin.attach("m", [BLOB], registry.url) as worker:
        admin.grant("m", registry.url)
        worker.open()
        worker.demand(0, 0, 3)
        fetcher.process.send_signal(signal.SIGTERM)
        assert fetcher.process.wait(5) == 0
        worker.wait(lambda: worker.gone, "the session to hang up")
    assert not (fetcher.cache / protocol.SOCKET_NAME).exists()
    (key,) = CacheStore(fetcher.cache).keys()
    stored = CacheStore(fetcher.cache).stored(key)
    assert stored is not None
    assert stored.bytes_cached >= 3 * MIB


@pytest.mark.kernel
def test_a_really_full_disk_does_not_stop_readers(registry: FaultyRegistry) -> None:
    """On a tmpfs of 8 MiB a blob of 20 MiB is read in full, the rest of it lent."""
    directory = Path(tempfile.mkdtemp())
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "tmpfs", str(directory)], check=True)
    try:
        with (
            FetcherProcess(directory / "cache") as fetcher,
            fetcher.connect() as admin,
            admin.attach("m", [BLOB], registry.url) as worker,
        ):
            admin.grant("m", registry.url)
            worker.open()
            worker.want(0, 0, 21, "background")
            got = b"".join(worker.demand(0, block) for block in range(21))
            assert got == CONTENT
            assert worker.loans
            assert worker.ready
            fault = admin.progress("m").stalled_by
            assert fault is not None
            assert fault.kind == "no_space"
    finally:
        subprocess.run(["umount", str(directory)], check=True)
        directory.rmdir()


def test_an_idle_fetcher_is_small_and_still(fetcher: FetcherProcess, registry: FaultyRegistry) -> None:
    """After work it holds less than 60 MB of its own, and uses no CPU."""
    with fetcher.connect() as admin:
        fetch_all(admin, registry)
        pid = fetcher.process.pid
        assert int(status_of(pid, "RssAnon")[0]) < 60 * 1024

        def ticks() -> int:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            return int(fields[11]) + int(fields[12])

        before = ticks()
        threading.Event().wait(0.5)
        assert ticks() - before <= 1
