"""Starts a worker: `python -m fuse.worker FD`, where FD is one end of the control socket (`fuse.spec`).

Imports come first, as the user it was started as (Python may live where the other user cannot look); then the privileges go,
and only then is anything parsed that an artifact had a part in.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import Final

import fuse.worker.lean  # noqa: F401 - first, for what it keeps from being imported

# isort: split
import structlog
import trio

from fuse import logs, spec, wire
from fuse.errors import Corrupt, InvalidRequest, WeightlessError
from fuse.filesystem import table
from fuse.worker import privileges
from fuse.worker.service import Worker

SWITCH_INTERVAL_S: Final = 0.0005
"""A loop that waits for the interpreter lock behind a thread's checksum waits for this long, not for the default's 5 ms."""


def main() -> int:
    control = wire.Channel[spec.ToWorker](socket.socket(fileno=int(sys.argv[1])), spec.ToWorker)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # The terminal's Ctrl-C is for the holder, which then decides about its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # pyfuse3 logs each answer that the kernel no longer wants, which after a takeover is normal.
    logging.getLogger("pyfuse3").setLevel(logging.CRITICAL)
    logs.configure("worker", os.environ.get("WEIGHTLESS_LOG_LEVEL", "info"))
    privileges.set_limits()
    received = control.receive()
    if received is None:
        return 0
    try:
        worker = _prepare(control, *received)
        trio.run(worker.run)
    except Exception as error:  # noqa: BLE001  (the edge of the process)
        cause = _cause(error)
        if isinstance(cause, WeightlessError):
            structlog.get_logger().error("worker_broken", error=cause)
            return _give_up(control, cause)
        structlog.get_logger().exception("worker_broken")
        return _give_up(control, WeightlessError(f"the worker failed: {cause!r}"))
    return 0


def _cause(error: Exception) -> Exception:
    """trio wraps what comes out of its nurseries, once for each."""
    return _cause(error.exceptions[0]) if isinstance(error, ExceptionGroup) else error


def _prepare(control: wire.Channel[spec.ToWorker], start: spec.ToWorker, fds: list[int]) -> Worker:
    if not isinstance(start, spec.Start) or len(fds) != 3:
        raise InvalidRequest(f"expected Start with 3 descriptors, got {type(start).__name__} with {len(fds)}")
    privileges.drop(start.uid, start.gid)
    structlog.contextvars.bind_contextvars(mount=start.spec.identity, reference=start.spec.reference)
    device, session, content = fds
    encoded = wire.read_whole(content, table.MAX_TABLE_BYTES)
    os.close(content)
    if table.identity(encoded) != start.spec.table:
        raise Corrupt("the inode table is not the one that the mount was made with", where=start.spec.reference)
    return Worker(
        start,
        table.decode(encoded),
        control=control.sock.dup(),
        device=device,
        session=socket.socket(fileno=session),
    )


def _give_up(control: wire.Channel[spec.ToWorker], error: WeightlessError) -> int:
    with suppress(OSError):
        control.send(spec.Broken(fault=error.to_fault()))
    return 1


if __name__ == "__main__":
    sys.exit(main())
