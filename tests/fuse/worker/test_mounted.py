"""The worker on the real kernel: what programs see of a mount, and what the worker is while they do."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fuse import spec
from fuse.errors import Fault
from fuse.fetch import protocol
from fuse.mounting import device
from tests.support.fetchsession import BLOCK
from tests.support.fusemount import bound, unmount, user_namespace
from tests.support.waiting import until
from tests.support.workerprocess import NOBODY, MountedWorker, mounted_worker

pytestmark = pytest.mark.kernel

CONTENT = random.Random(1).randbytes(9 * BLOCK + 4321)
SMALL = b'{"model_type": "tiny"}'
FILES = {
    "config.json": (1, 0, len(SMALL)),
    "weights/model.safetensors": (0, 0, len(CONTENT)),
    "weights/inside.bin": (0, BLOCK - 77, 3 * BLOCK),
    "empty": (-1, 0, 0),
}
MODEL = "weights/model.safetensors"


def test_tree_and_bytes_are_those_of_the_artifact() -> None:
    """Names, kinds, modes, times, sizes, content, links in statfs and xattrs."""
    with mounted_worker([CONTENT, SMALL], FILES) as worker:
        root = worker.path
        assert sorted(path.relative_to(root).as_posix() for path in root.rglob("*")) == sorted([*FILES, "weights"])
        assert (root / "config.json").read_bytes() == SMALL
        assert (root / MODEL).read_bytes() == CONTENT
        assert (root / "weights/inside.bin").read_bytes() == CONTENT[BLOCK - 77 : 4 * BLOCK - 77]
        assert (root / "empty").read_bytes() == b""
        found = (root / MODEL).stat()
        assert (0o100444, len(CONTENT), 1_700_000_000_123_456_789) == (found.st_mode, found.st_size, found.st_mtime_ns)
        assert root.stat().st_nlink == 3
        assert os.statvfs(root).f_blocks * 4096 >= len(CONTENT)
        assert os.getxattr(root / "weights/inside.bin", "user.weightless.offset") == str(BLOCK - 77).encode()
        assert "user.weightless.artifact" in os.listxattr(root)
        with pytest.raises(OSError, match="No data available"):
            os.getxattr(root / "config.json", "user.other")
        with pytest.raises(FileNotFoundError):
            (root / "weights/none").stat()


def test_large_directory_is_listed_once_each() -> None:
    """More entries than one readdir request holds."""
    names = {f"dir/file-{number:05}": (0, number, 1) for number in range(1500)}
    with mounted_worker([CONTENT], names) as worker:
        assert sorted(os.listdir(worker.path / "dir")) == sorted(name[4:] for name in names)


def test_random_reads_and_maps_of_many_processes_are_right(tmp_path: Path) -> None:
    """Four processes read and map at random places of a file whose blocks come while they do."""
    (tmp_path / "expected").write_bytes(CONTENT)
    with mounted_worker([CONTENT, SMALL], FILES, prefetch="full") as worker:
        readers = [
            subprocess.Popen(
                [sys.executable, "-c", _RANDOM_READER, worker.path / MODEL, tmp_path / "expected", str(seed)]
            )
            for seed in range(4)
        ]
        assert [reader.wait(60) for reader in readers] == [0] * 4


_RANDOM_READER = """
import mmap, os, random, sys
chance = random.Random(int(sys.argv[3]))
expected = open(sys.argv[2], "rb").read()
with open(sys.argv[1], "rb", buffering=0) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
    for _ in range(300):
        offset, length = chance.randrange(len(expected)), chance.choice([1, 100, 4096, 70000, 2 << 20])
        assert os.pread(file.fileno(), length, offset) == expected[offset : offset + length]
        offset = chance.randrange(len(expected))
        assert mapped[offset : offset + 5000] == expected[offset : offset + 5000]
"""


def test_second_read_comes_from_the_page_cache() -> None:
    """Neither closing nor opening again drops the kernel's pages: no READ reaches the worker."""
    with mounted_worker([CONTENT, SMALL], FILES) as worker:
        (worker.path / MODEL).read_bytes()
        reads = worker.report().reads
        assert reads > 0
        assert (worker.path / MODEL).read_bytes() == CONTENT
        assert worker.report().reads == reads


def _open(flags: int) -> Callable[[Path], object]:
    return lambda root: os.close(os.open(root / "config.json", flags))


WRITES: dict[str, Callable[[Path], object]] = {
    "write": _open(os.O_WRONLY),
    "update": _open(os.O_RDWR),
    "truncate at open": _open(os.O_WRONLY | os.O_TRUNC),
    "create": lambda root: (root / "new").touch(),
    "mkdir": lambda root: (root / "new").mkdir(),
    "unlink": lambda root: (root / "config.json").unlink(),
    "rmdir": lambda root: (root / "weights").rmdir(),
    "rename": lambda root: (root / "config.json").rename(root / "other"),
    "link": lambda root: os.link(root / "config.json", root / "other"),
    "symlink": lambda root: (root / "other").symlink_to("config.json"),
    "mknod": lambda root: os.mkfifo(root / "other"),
    "chmod": lambda root: (root / "config.json").chmod(0o666),
    "chown": lambda root: os.chown(root / "config.json", 1, 1),
    "utime": lambda root: os.utime(root / "config.json"),
    "truncate": lambda root: os.truncate(root / "config.json", 0),
    "setxattr": lambda root: os.setxattr(root / "config.json", "user.a", b"b"),
    "removexattr": lambda root: os.removexattr(root / "config.json", "user.weightless.digest"),
}


@pytest.mark.parametrize("read_only", [True, False], ids=["read-only superblock", "writable superblock"])
def test_every_writing_call_is_refused_as_read_only(read_only: bool) -> None:
    """Also where only the worker itself stands in the way."""
    with mounted_worker([CONTENT, SMALL], FILES, read_only=read_only) as worker:
        for name, write in WRITES.items():
            with pytest.raises(OSError, match=r"Read-only file system") as found:
                write(worker.path)
            assert found.value.errno == errno.EROFS, name
        assert (worker.path / "config.json").read_bytes() == SMALL


def test_id_mapped_bind_reads_and_shows_mapped_owners(tmp_path: Path) -> None:
    """What pods with a user namespace of their own need; also through a successor."""
    with (
        mounted_worker([CONTENT, SMALL], FILES) as worker,
        user_namespace(100_000) as namespace,
        bound(worker.path, tmp_path / "pod", user_namespace=namespace) as pod,
    ):
        assert (pod / "config.json").stat().st_uid == 100_000
        assert (pod / MODEL).read_bytes() == CONTENT
        worker.kill()
        worker.start()
        assert (pod / "weights/inside.bin").read_bytes() == CONTENT[BLOCK - 77 : 4 * BLOCK - 77]


def test_worker_has_no_privilege_and_is_small() -> None:
    """The user, the groups, the capabilities, the way back; memory and work while idle."""
    with mounted_worker([CONTENT, SMALL], FILES, prefetch="full") as worker:
        assert (worker.path / MODEL).read_bytes() == CONTENT
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines())
        assert status["Uid"].split() == status["Gid"].split() == [str(NOBODY)] * 4
        assert status["Groups"].split() == []
        assert {int(status[kind], 16) for kind in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {0}
        assert status["NoNewPrivs"] == "1"
        assert int(status["RssAnon"].split()[0]) < 50 * 1024
        worked = _cpu_ticks(worker)
        until(lambda: _cpu_ticks(worker) == worked, "a worker that rests", within_s=2)


def _cpu_ticks(worker: MountedWorker) -> int:
    fields = Path(f"/proc/{worker.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def test_killed_reader_dies_at_once_although_its_block_never_comes() -> None:
    """A pod can be deleted while the registry is away."""
    with mounted_worker([CONTENT, SMALL], FILES) as worker:
        worker.fetcher.held = True
        reader = subprocess.Popen(["cat", worker.path / MODEL], stdout=subprocess.DEVNULL)
        worker.waiting_for(1)
        reader.kill()
        assert reader.wait(5) == -signal.SIGKILL
        assert os.listdir(worker.path / "weights")


_FAULTING_READER = """
import mmap, signal, sys
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
file = open(sys.argv[1], "rb")
mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
mapped.madvise(mmap.MADV_RANDOM)
print("ready", flush=True)
sys.stdout.buffer.write(mapped[5 * 1048576 : 5 * 1048576 + 100])
"""
"""Its page fault is one READ of one page, which the kernel does not let it die in; and signals come all the time."""


def _faulting(worker: MountedWorker) -> subprocess.Popen[bytes]:
    worker.fetcher.held = True
    reader = subprocess.Popen([sys.executable, "-c", _FAULTING_READER, worker.path / MODEL], stdout=subprocess.PIPE)
    assert reader.stdout is not None
    assert reader.stdout.readline() == b"ready\n"
    worker.waiting_for(1)
    until(lambda: _pending(reader.pid) & 1 << (signal.SIGALRM - 1), "a signal that it cannot take")
    return reader


def _pending(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("ShdPnd:"))


def test_killed_reader_dies_also_in_a_page_fault_after_other_signals() -> None:
    """The kernel tells us of the first signal only, and waits for our answer whatever comes after it."""
    with mounted_worker([CONTENT, SMALL], FILES) as worker:
        reader = _faulting(worker)
        reader.kill()
        assert reader.wait(10) == -signal.SIGKILL
        assert reader.stdout is not None
        reader.stdout.close()
        until(lambda: worker.report().waiting == 0, "the READ to be given up")


def test_signals_do_not_make_a_page_fault_fail() -> None:
    """EINTR is a SIGBUS on some kernels, and a fault again on others: a reader that is only interrupted waits on."""
    with mounted_worker([CONTENT, SMALL], FILES) as worker:
        reader = _faulting(worker)
        assert [worker.report().reads for _ in range(20)] == [1] * 20
        worker.fetcher.release()
        assert reader.communicate(timeout=20)[0] == CONTENT[5 * BLOCK : 5 * BLOCK + 100]


def test_storm_of_names_does_not_stop_reads() -> None:
    """Many processes list a large directory at once: more answers than libfuse's socket has room for at a time."""
    names = {f"dir/{'long-name' * 20}-{number:05}": (0, number, 1) for number in range(3000)}
    with mounted_worker([CONTENT], {**names, "model": (0, 0, len(CONTENT))}) as worker:
        listers = [
            subprocess.Popen(["find", worker.path / "dir", "-type", "f", "-size", "-2"], stdout=subprocess.PIPE)
            for _ in range(6)
        ]
        assert (worker.path / "model").read_bytes() == CONTENT
        assert [len(lister.communicate(timeout=60)[0].splitlines()) for lister in listers] == [3000] * 6


def test_hundreds_of_waiting_reads_do_not_stop_the_rest() -> None:
    """Names can be looked up and cached bytes read while many reads wait."""
    content = random.Random(2).randbytes(150 * BLOCK)
    with mounted_worker([content, SMALL], {"large": (0, 0, len(content)), "small": (1, 0, len(SMALL))}) as worker:
        (worker.path / "small").read_bytes()
        worker.fetcher.held = True
        readers = [_reader(worker.path / "large", number) for number in range(0, 150, 2)]
        worker.waiting_for(64)
        assert (worker.path / "small").read_bytes() == SMALL
        assert (worker.path / "large").stat().st_size == len(content)
        worker.fetcher.release()
        assert [reader.wait(20) for reader in readers] == [0] * len(readers)


def _reader(path: Path, block: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["dd", f"if={path}", "of=/dev/null", "bs=1", "count=1", f"skip={block * BLOCK}", "status=none"]
    )


def test_quarantined_file_is_gone_from_the_page_cache_too() -> None:
    """Bytes that were read before the digest turned out wrong are not readable from the kernel's memory."""
    with mounted_worker([CONTENT, SMALL], FILES) as worker, (worker.path / MODEL).open("rb", buffering=0) as file:
        assert file.read(100) == CONTENT[:100]
        worker.fetcher.send(protocol.Quarantined(blob=0, fault=Fault(kind="corrupt", what="wrong bytes")))
        condition = worker.condition()
        assert condition.permanent
        assert condition.fault is not None

        def refused() -> bool:
            try:
                os.pread(file.fileno(), 100, 0)
            except OSError as error:
                return error.errno == errno.EIO
            return False

        until(refused, "EIO for pages that were cached")
        with pytest.raises(OSError, match="Input/output"):
            (worker.path / MODEL).open("rb").close()
        assert (worker.path / "config.json").read_bytes() == SMALL


def test_permanent_failure_is_eio_and_a_temporary_one_is_not() -> None:
    """A stall makes the reader wait and the condition speak; a 404 ends it."""
    with mounted_worker([CONTENT, SMALL], FILES) as worker:
        worker.fetcher.held = True
        reader = subprocess.Popen(["cat", worker.path / "config.json"], stdout=subprocess.PIPE)
        worker.waiting_for(1)
        worker.fetcher.send(protocol.Stalled(fault=Fault(kind="unavailable", what="no answer")))
        assert not worker.condition().permanent
        assert reader.poll() is None
        worker.fetcher.release()
        assert reader.communicate(timeout=10)[0] == SMALL
        worker.fetcher.held = True
        reader = subprocess.Popen(["cat", worker.path / MODEL], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        worker.waiting_for(1)
        worker.fetcher.fail(0, 0, 0)
        assert b"Input/output error" in reader.communicate(timeout=10)[1]
        assert reader.returncode == 1


def _mapped(path: Path, start: int, end: int) -> bytes:
    """Bytes of a mapped file, read by a process of its own: a page fault would hold the fake fetcher's interpreter lock."""
    program = (
        "import mmap, sys; file = open(sys.argv[1], 'rb'); mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ);"
        "sys.stdout.buffer.write(mapped[int(sys.argv[2]) : int(sys.argv[3])])"
    )
    command = [sys.executable, "-c", program, path, str(start), str(end)]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=30).stdout


def test_map_is_right_while_blocks_come() -> None:
    """A mapped file, as safetensors reads it."""
    with mounted_worker([CONTENT, SMALL], FILES) as worker:
        assert _mapped(worker.path / MODEL, 0, len(CONTENT)) == CONTENT


def test_one_tensor_costs_little_more_than_itself() -> None:
    """Without prefetch, reading 8 MiB of a model of 150 MiB fetches less than 5 % of the model beyond."""
    content = random.Random(3).randbytes(150 * BLOCK)
    with mounted_worker([content], {"model.safetensors": (0, 0, len(content))}) as worker:
        worker.mount.set_read_ahead(1024)
        start, end = 40 * BLOCK + 5, 48 * BLOCK
        assert _mapped(worker.path / "model.safetensors", start, end) == content[start:end]
        asked = {
            block
            for priority in ("demand", "readahead", "background")
            for want in worker.fetcher.wants(priority)
            for block in range(want.first, want.first + want.count)
        }
        assert len(asked) - 8 < 0.05 * 150


LOADED = random.Random(6).randbytes(32 * BLOCK)


def _read(path: Path) -> bytes:
    return path.read_bytes()[::4096]


def _touched(path: Path) -> bytes:
    """Mapped, page by page in order, as llama.cpp reads; in a process of its own as `_mapped`."""
    return _first_of_each_page(path, "mapped[::4096]")


def _copied(path: Path) -> bytes:
    """Mapped and copied at once, as safetensors does: by memcpy(3), which goes in the direction that it likes."""
    return _first_of_each_page(path, "mapped[:][::4096]")


def _first_of_each_page(path: Path, how: str) -> bytes:
    program = (
        "import mmap, sys; file = open(sys.argv[1], 'rb'); mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ);"
        f"sys.stdout.buffer.write({how})"
    )
    return subprocess.run([sys.executable, "-c", program, path], stdout=subprocess.PIPE, check=True, timeout=30).stdout


@pytest.mark.parametrize(("load", "reads"), [(_read, 36), (_touched, 36), (_copied, 68)])
@pytest.mark.parametrize("cold", [True, False], ids=["cold", "complete"])
def test_a_load_costs_few_requests_and_one_copy(load: Callable[[Path], bytes], reads: int, cold: bool) -> None:
    """Of 32 MiB, with the kernel's settings of a real mount: each byte is copied to the kernel once, READs are large, and the
    fetcher is asked for each block once, and for a few windows ahead."""
    with mounted_worker([LOADED], {"model.safetensors": (0, 0, len(LOADED))}) as worker:
        if not cold:
            worker.fetcher.blobs[0].fill()
        worker.mount.set_read_ahead(device.READ_AHEAD_KB)
        assert load(worker.path / "model.safetensors") == LOADED[::4096]
        report = worker.report()
        assert report.bytes_read == len(LOADED)
        assert report.reads <= reads
        demanded = worker.fetcher.demanded()
        assert len(demanded) == len(set(demanded))
        assert len(worker.fetcher.wants("demand")) + len(worker.fetcher.wants("readahead")) <= (48 if cold else 0)


def test_worker_ends_with_its_holder() -> None:
    """A closed control socket ends it, though reads wait."""
    with mounted_worker([CONTENT, SMALL], FILES) as worker:
        worker.fetcher.held = True
        reader = subprocess.Popen(["cat", worker.path / MODEL], stdout=subprocess.DEVNULL)
        worker.waiting_for(1)
        assert worker.hang_up() == 0
        # The end of a reader is a request too.
        worker.start()
        reader.kill()
        reader.wait(10)


def test_worker_ends_with_its_mount() -> None:
    """umount(8) is the kernel's word that nobody needs it any more."""
    with mounted_worker([CONTENT, SMALL], FILES) as worker:
        assert (worker.path / "config.json").read_bytes() == SMALL
        unmount(worker.path)
        assert worker.process is not None
        assert worker.process.wait(10) == 0


@pytest.mark.parametrize("how", ["message", "signal"])
def test_stopped_worker_answers_what_it_has_and_leaves_the_rest(how: str) -> None:
    """A stop with a read in hand: it is answered if its bytes come; the successor goes on."""
    with mounted_worker([CONTENT, SMALL], FILES) as worker:
        worker.fetcher.held = True
        reader = subprocess.Popen(["cat", worker.path / "config.json"], stdout=subprocess.PIPE)
        worker.waiting_for(1)
        if how == "message":
            worker.send(spec.Stop())
        else:
            os.kill(worker.pid, signal.SIGTERM)
        worker.fetcher.release()
        assert worker.process is not None
        assert worker.process.wait(10) == 0
        worker.start()
        assert reader.communicate(timeout=10)[0] == SMALL
        assert (worker.path / MODEL).read_bytes() == CONTENT


def test_prefetch_can_be_switched_on() -> None:
    """A mount that was lazy fetches the rest in the loader's order when told to."""
    with mounted_worker([CONTENT, SMALL], FILES) as worker:
        worker.report()
        assert worker.fetcher.wants("background") == []
        worker.send(spec.SetPrefetch(prefetch="full"))
        until(lambda: sum(want.count for want in worker.fetcher.wants("background")) == 11, "wants for all blocks")
        assert worker.fetcher.wants("background")[0].blob == 1


def test_unusable_start_is_told() -> None:
    """A wrong table: Broken with words, and an exit code."""
    with mounted_worker([CONTENT, SMALL], FILES, start=False) as worker:
        worker.encoded += b" "
        with pytest.raises(AssertionError, match="inode table is not the one"):
            worker.start()
        assert worker.process is not None
        assert worker.process.wait(10) == 1
