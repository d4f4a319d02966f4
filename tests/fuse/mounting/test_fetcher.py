"""Finding, starting, asking and leaving a fetcher, with one made for tests."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from fuse import wire
from fuse.errors import Cancelled, InvalidConfig, InvalidRequest, NoSpace, NotFound, Unavailable, WeightlessError
from fuse.fetch import protocol
from fuse.fetch.limits import RegistryLimits
from fuse.fetch.settings import FetcherSettings as Told
from fuse.filesystem import table
from fuse.filesystem.table import View
from fuse.mounting import fetcher_start
from fuse.mounting.fetcher import FetcherClient
from fuse.mounting.fetcher_connection import Connection
from fuse.mounting.fetcher_start import FetcherSettings
from fuse.mounting.values import HolderSettings
from tests.support.holders import ACCESS, Place, no_zombie_is_left, place
from tests.support.leaks import alive
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(60)
REFERENCE = "registry.example/m:v1"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with place(monkeypatch) as made:
        yield made


@pytest.fixture
def settings(here: Place) -> FetcherSettings:
    return FetcherSettings(cache_dir=here.box.cache, run_dir=here.box.run)


@pytest.fixture
def client(settings: FetcherSettings) -> Iterator[FetcherClient]:
    made = FetcherClient(settings)
    yield made
    made.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's socket is made as root")
def test_credentials_are_told_to_nobody_else(settings: FetcherSettings) -> None:
    """Whoever can write the cache directory may listen in the fetcher's place, and is not spoken to."""
    settings.cache_dir.mkdir(exist_ok=True)
    path = settings.cache_dir / protocol.SOCKET_NAME
    with wire.listen(path) as listener:
        os.seteuid(65534)  # whose credentials a client sees is settled by listen(2)
        try:
            listener.listen()
        finally:
            os.seteuid(0)
        client = FetcherClient(settings)
        with pytest.raises(InvalidConfig, match="user 65534"):
            client.resolve(REFERENCE, ACCESS, View())
        client.close()
        listener.setblocking(False)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(65536) == b""
    path.unlink()


def test_the_first_request_starts_it_and_the_last_close_ends_it(settings: FetcherSettings) -> None:
    """Nothing runs before somebody asks, nothing is left after."""
    client = FetcherClient(settings)
    assert client.pid is None
    resolved, content = client.resolve(REFERENCE, ACCESS, View())
    assert table.identity(content) == resolved.table
    pid = client.pid
    assert pid is not None
    assert os.getsid(pid) == pid
    client.close()
    assert not alive(pid)
    no_zombie_is_left()
    assert list(settings.run_dir.iterdir()) == []


def test_it_is_shared_by_all_who_use_the_directory(settings: FetcherSettings) -> None:
    """Ten at once start one; it lives until the last has gone."""
    clients = [FetcherClient(settings) for _ in range(10)]
    with ThreadPoolExecutor(10) as threads:
        pids = set(threads.map(lambda client: client.connection().pid, clients))
    assert len(pids) == 1
    pid = pids.pop()
    for client in sorted(clients, key=lambda client: client._started):
        assert alive(pid)
        client.close()
    assert not alive(pid)


def test_leaving_one_that_others_use_does_not_wait_for_its_end(
    settings: FetcherSettings, client: FetcherClient
) -> None:
    """A command is done at once, a holder after the moment that it takes to be sure; who remains is not disturbed."""
    pid = client.connection().pid
    for holder, limit_s in ((False, 0.4), (True, 3)):
        other = FetcherClient(settings, on_connected=(lambda _: None) if holder else None)
        assert other.connection().pid == pid
        began = time.monotonic()
        other.close()
        assert time.monotonic() - began < limit_s
    assert client.cache_list()


def test_a_holder_that_is_the_last_waits_for_the_end_of_one_that_another_started(settings: FetcherSettings) -> None:
    """Whoever turns the light off sees it go out."""
    starter, last = FetcherClient(settings), FetcherClient(settings, on_connected=lambda _: None)
    pid = starter.connection().pid
    assert last.connection().pid == pid
    starter.close()
    assert alive(pid)
    last.close()
    assert not alive(pid)


def test_many_requests_at_a_time_get_their_own_answers(client: FetcherClient) -> None:
    """Answers are matched by id, with their descriptors."""
    names = [f"registry.example/m{number}:v1" for number in range(20)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda name: client.resolve(name, ACCESS, View()), names))
    assert [resolved.media_type for resolved, _ in answers] == names
    assert all(table.identity(content) == resolved.table for resolved, content in answers)


def test_an_answer_in_parts_is_put_together(client: FetcherClient) -> None:
    """A long list comes in several messages."""
    assert len(client.cache_list()) == 2


def test_a_refusal_is_raised_as_what_it_is(client: FetcherClient) -> None:
    """The fetcher's error, not a wrapping of it."""
    with pytest.raises(NotFound, match="no such tag"):
        client.resolve("registry.example/m:missing", ACCESS, View())


def test_a_request_can_be_cancelled(client: FetcherClient) -> None:
    """The one who waits is released at once, and the fetcher is told."""
    cancel = threading.Event()
    threading.Timer(0.1, cancel.set).start()
    with pytest.raises(Cancelled):
        client.resolve("registry.example/m:slow", ACCESS, View(), cancel)
    assert client.cache_list()


def test_its_death_fails_what_waits_and_the_next_request_starts_another(client: FetcherClient) -> None:
    """A request that may be repeated is repeated once by itself."""
    connection = client.connection()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(connection.resolve, "registry.example/m:slow", ACCESS, View(), None)
        until(lambda: connection._pending, "the request is under way")
        os.kill(connection.pid, signal.SIGKILL)
        with pytest.raises(Unavailable):
            waiting.result(10)
    assert connection.gone
    with pytest.raises(Unavailable):
        connection.detach("x")
    assert client.resolve(REFERENCE, ACCESS, View())
    assert client.pid != connection.pid


def test_one_that_cannot_start_is_quoted(client: FetcherClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exit and its last words are in the error; the next try may work."""
    monkeypatch.setenv("WEIGHTLESS_TEST_FETCHER", "broken")
    with pytest.raises(Unavailable, match="ended with status 1: the cache is on fire"):
        client.cache_list()
    assert client.trouble is not None
    monkeypatch.delenv("WEIGHTLESS_TEST_FETCHER")
    assert client.cache_list()
    assert client.trouble is None


def test_a_cache_directory_that_cannot_be_made_is_named(here: Place) -> None:
    """A file stands where the directory should be."""
    (here.box.root / "file").touch()
    client = FetcherClient(FetcherSettings(cache_dir=here.box.root / "file" / "cache", run_dir=here.box.run))
    with pytest.raises(InvalidConfig, match="its path, is a file"):
        client.cache_list()
    client.close()


def test_a_request_without_network_has_a_limit(client: FetcherClient) -> None:
    """A fetcher that is stopped is told apart from one that is slow for a reason."""
    connection = client.connection()
    os.kill(connection.pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{connection.pid}/task")
    until(lambda: all(") T " in (task / "stat").read_text() for task in tasks.iterdir()), "all of it is stopped")
    try:
        with pytest.raises(Unavailable, match="did not answer within"):
            connection.ask(lambda number: protocol.CacheList(id=number), limit_s=0.1)
    finally:
        os.kill(connection.pid, signal.SIGCONT)


def test_answers_that_nobody_waits_for_are_forgotten(client: FetcherClient) -> None:
    """Whoever asks for the progress of a mount gives up after a second: a busy fetcher's late answers do not gather for ever."""
    connection = client.connection()
    for _ in range(3):
        question = connection.question("")
        assert question is not None
        until(lambda asked=question: asked.answered, "the answer")
    assert len(connection._pending) <= 1
    connection.drop_question("")
    assert not connection._pending


def test_a_peer_that_talks_nonsense_is_left(here: Place) -> None:
    """It parses hostile input, so its own words are not trusted either."""
    path = here.box.run / "nonsense.sock"
    with wire.listen(path) as listener:
        threads = ThreadPoolExecutor(1)

        def talk() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(1000)
                sock.send(b'{"op": "welcome", "id": "not a number"}')
                sock.recv(1000)

        talking = threads.submit(talk)
        with pytest.raises(Unavailable):
            Connection(path, on_gone=lambda _: None)
        talking.result(10)
        threads.shutdown()
    path.unlink()


@pytest.mark.parametrize(("needs", "refused"), [(protocol.VERSION, False), (protocol.VERSION + 1, True)])
def test_a_later_version_is_refused_when_it_needs_a_later_peer(here: Place, needs: int, refused: bool) -> None:
    """And only then: an upgrade and a rollback go on with what is there."""
    path = here.box.run / "newer.sock"
    with wire.listen(path) as listener, ThreadPoolExecutor(1) as threads:

        def talk() -> None:
            channel: wire.Channel[protocol.Request] = wire.Channel(listener.accept()[0], protocol.Request)
            with channel:
                received = channel.receive()
                assert received is not None
                channel.send(protocol.Welcome(id=received[0].id, pid=1, version=99, needs=needs))
                channel.receive()

        talking = threads.submit(talk)
        if refused:
            with pytest.raises(Exception, match="speaks version 99"):
                Connection(path, on_gone=lambda _: None)
        else:
            Connection(path, on_gone=lambda _: None).close()
        talking.result(10)
    path.unlink()


def test_a_fetcher_that_knows_no_profiles_is_not_asked_for_one(here: Place) -> None:
    """It would hang up, for all who use the connection."""
    path = here.box.run / "older.sock"
    with wire.listen(path) as listener, ThreadPoolExecutor(1) as threads:

        def talk() -> list[protocol.Request]:
            channel: wire.Channel[protocol.Request] = wire.Channel(listener.accept()[0], protocol.Request)
            asked: list[protocol.Request] = []
            with channel:
                while (received := channel.receive()) is not None:
                    asked.append(received[0])
                    channel.send(protocol.Welcome(id=received[0].id, pid=1, version=1))
            return asked

        talking = threads.submit(talk)
        connection = Connection(path, on_gone=lambda _: None)
        with pytest.raises(InvalidRequest, match="older version"):
            connection.find_profile(REFERENCE)
        connection.close()
        assert ["Hello"] == [type(request).__name__ for request in talking.result(10)]
    path.unlink()


def test_the_settings_name_nobody_for_root_only() -> None:
    """A user's fetcher stays that user's."""
    argument = FetcherSettings(cache_dir=Path("/c"), run_dir=Path("/r"), quota_bytes=5).argument()
    assert '"quota_bytes":5' in argument
    assert ("65534" in argument) == (os.geteuid() == 0)


def test_the_fetcher_understands_what_it_is_told() -> None:
    """Every limit of a holder arrives, also those of single registries; what is not said is left to the fetcher."""
    own = {"registry.example": RegistryLimits(connections=3, bytes_per_s=5_000_000)}
    holder = HolderSettings(
        cache_dir=Path("/c"), run_dir=Path("/r"), connections=5, bytes_per_s=7_000_000, quota_bytes=9, registries=own
    )
    told = msgspec.json.decode(holder.fetcher().argument(), type=Told)

    assert (told.connections, told.bytes_per_s, told.quota_bytes, told.registries) == (5, 7_000_000, 9, own)
    silent = FetcherSettings(cache_dir=Path("/c"), run_dir=Path("/r")).argument()
    assert msgspec.json.decode(silent, type=Told).connections == Told().connections


SAYS_WHY = """
import os, sys
fd = int(sys.argv[sys.argv.index("--report-fd") + 1])
os.write(fd, b'{"kind": "no_space", "what": "is full", "where": "/x", "fix": "free space", "of_a_newer_version": 1}')
print("a line for people", file=sys.stderr)
sys.exit(1)
"""


@pytest.mark.parametrize(
    ("program", "kind", "says"),
    [
        (SAYS_WHY, NoSpace, r"/x: is full \(free space\)"),
        ("raise RuntimeError('out of luck')", Unavailable, "ended with status 1: RuntimeError: out of luck"),
        ("import os; os.kill(os.getpid(), 9)", Unavailable, "was killed by signal 9"),
    ],
)
def test_one_that_cannot_start_says_why(
    settings: FetcherSettings, monkeypatch: pytest.MonkeyPatch, program: str, kind: type[WeightlessError], says: str
) -> None:
    """Its fault is raised as it was given; without one, how it ended and its last word. Its log goes with it."""
    monkeypatch.setattr(fetcher_start, "PROGRAM", ("-c", program))
    before = set(os.listdir("/proc/self/fd"))
    client = FetcherClient(settings)
    for _ in range(2):
        with pytest.raises(kind, match=says):
            client.cache_list()
        assert isinstance(client.trouble, kind)
    client.close()
    assert list(settings.run_dir.iterdir()) == []
    no_zombie_is_left()
    assert set(os.listdir("/proc/self/fd")) == before
