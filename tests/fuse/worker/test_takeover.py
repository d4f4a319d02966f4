"""A worker dies and another one goes on: no reader sees an error, none a wrong byte."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from fuse.worker import handshake
from tests.support.fetchsession import BLOCK
from tests.support.fusemount import bound
from tests.support.workerprocess import MountedWorker, mounted_worker

pytestmark = pytest.mark.kernel

CONTENT = random.Random(1).randbytes(12 * BLOCK + 99)
FILES = {"model.bin": (0, 0, len(CONTENT)), **{f"many/{number:04}": (0, number, 10) for number in range(300)}}
STALL_S = 3.0
"""A bound for loaded machines; half a second is usual."""


def _md5(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["md5sum", path], stdout=subprocess.PIPE)


def _right(reader: subprocess.Popen[bytes]) -> bool:
    output, _ = reader.communicate(timeout=30)
    return reader.returncode == 0 and output.split()[0].decode() == hashlib.md5(CONTENT).hexdigest()


def test_reader_that_waits_survives_kill_after_kill() -> None:
    """The READ that a dead worker had taken is sent again to each of its successors."""
    with mounted_worker([CONTENT], FILES) as worker:
        worker.fetcher.held = True
        reader = _md5(worker.path / "model.bin")
        worker.waiting_for(1)
        for _ in range(3):
            worker.kill()
            began = time.monotonic()
            worker.start()
            worker.waiting_for(1)
            assert time.monotonic() - began < STALL_S
        worker.fetcher.release()
        assert _right(reader)


def test_readers_of_all_kinds_survive(tmp_path: Path) -> None:
    """Sequential, through a bind mount, listing and looking up, while workers die."""
    with mounted_worker([CONTENT], FILES, prefetch="full") as worker, bound(worker.path, tmp_path / "pod") as pod:
        readers = [_md5(worker.path / "model.bin"), _md5(pod / "model.bin")]
        listing = subprocess.Popen(
            ["sh", "-c", 'for i in 1 2 3 4 5; do ls -l "$0" | wc -l; done', pod / "many"], stdout=subprocess.PIPE
        )
        for _ in range(3):
            worker.kill()
            worker.start()
        assert all(map(_right, readers))
        assert listing.communicate(timeout=30)[0].split() == [b"301"] * 5


def test_worker_that_died_before_its_first_answer_is_replaced() -> None:
    """INIT was handed over, nobody ever replied; the successor's reply is the first one."""
    with mounted_worker([CONTENT], FILES, start=False) as worker:
        reader = _md5(worker.path / "model.bin")
        worker.start()
        assert _right(reader)


def test_worker_that_died_before_it_could_tell_its_reply_is_replaced() -> None:
    """The kernel has the reply, the holder does not: the successor's own is refused by the kernel, and all goes on."""
    with mounted_worker([CONTENT], FILES) as worker:
        worker.fetcher.held = True
        reader = _md5(worker.path / "model.bin")
        worker.waiting_for(1)
        worker.kill()
        worker.reply = b""
        worker.start()
        worker.fetcher.release()
        assert _right(reader)


def test_reads_that_are_sent_again_to_who_has_them_are_answered() -> None:
    """A holder asks for what a dead worker held; its successor has asked itself, and has taken them by then."""
    with mounted_worker([CONTENT], FILES) as worker:
        worker.fetcher.held = True
        reader = _md5(worker.path / "model.bin")
        worker.waiting_for(1)
        os.write(worker.mount.device, handshake.RESEND)
        worker.waiting_for(2)
        os.write(worker.mount.device, handshake.RESEND)
        worker.waiting_for(3)
        worker.fetcher.release()
        assert _right(reader)
        worker.report()  # it lives


def test_a_worker_that_the_kernel_refuses_says_why() -> None:
    """Whoever started it, and waits, is told in words, not by a traceback in a log."""
    refused = pytest.raises(AssertionError, match=r"mount_failed.*does not take our answer")
    with mounted_worker([CONTENT], FILES, start=False) as worker, open("/dev/null", "rb") as no_device, refused:
        worker.start(device=no_device.fileno())


def test_fetcher_and_worker_may_die_together() -> None:
    """A reader waits through the death of both, and of the next fetcher."""
    with mounted_worker([CONTENT], FILES) as worker:
        worker.fetcher.held = True
        reader = _md5(worker.path / "model.bin")
        worker.waiting_for(1)
        worker.kill()
        worker.fetcher.die()
        worker.start()
        worker.waiting_for(1)
        worker.replace_fetcher()
        worker.waiting_for(1)
        worker.fetcher.release()
        assert _right(reader)


def test_open_file_and_its_inode_are_the_same_afterwards() -> None:
    """A descriptor that was opened before reads on after, and stat tells the same."""
    program = "read line; stat -c '%i %s' /dev/fd/3 -L; md5sum <&3"
    with mounted_worker([CONTENT], FILES) as worker:
        before = (worker.path / "model.bin").stat()
        reader = subprocess.Popen(
            ["sh", "-c", f'exec 3<"$0"; echo ready; {program}', worker.path / "model.bin"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"ready\n"
        _replace(worker)
        output = reader.communicate(b"\n", timeout=30)[0].split()
        assert [str(before.st_ino), str(before.st_size)] == [word.decode() for word in output[:2]]
        assert output[2].decode() == hashlib.md5(CONTENT).hexdigest()


def _replace(worker: MountedWorker) -> None:
    reply = worker.reply
    worker.kill()
    worker.start()
    assert worker.reply == reply
    assert os.path.exists(f"/proc/{worker.pid}")  # noqa: PTH110
