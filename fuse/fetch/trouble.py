"""When sources fail: holding a blob back, telling who waits, and believing a failure for a while.

Functions on the engine's state, called with its lock held; messages go into an outbox that is delivered afterwards.
Temporary and permanent are the error's own words (`WeightlessError.temporary`).
"""

from __future__ import annotations

import random
import time
from typing import Final

from fuse.errors import Fault, WeightlessError
from fuse.fetch import protocol
from fuse.fetch.blobs import BlobState, Grant
from fuse.fetch.mounts import Outbox
from fuse.fetch.queue import Queue

FOREVER: Final = float("inf")
_FIRST_RETRY_S: Final = 0.03
_LAST_RETRY_S: Final = 10.0
_RETRY_AFTER_MOST_S: Final = 30.0
_STALL_AFTER_S: Final = 1.0
"""Trouble that heals within this time is nobody's business."""
_FAILURE_HOLDS_S: Final = 15.0
"""How long a permanent failure is believed before a new wish tries again; doubled each time up to the most."""
_FAILURE_HOLDS_MOST_S: Final = 300.0


def back_off(
    queue: Queue[BlobState], blob: BlobState, grant: Grant | None, error: WeightlessError, since: float, outbox: Outbox
) -> None:
    """A source failed in a way that may heal: the next source at once, or all again after a while.

    `grant` None: nobody has given a right to fetch yet. `since`: monotonic time of the last byte, or of the first attempt.
    """
    now = time.monotonic()
    blob.tried += 1
    if grant is None:
        queue.hold(blob, FOREVER)  # a new grant releases it
    elif blob.tried % max(1, len(blob.usable_grants())) == 0:
        exponential = _FIRST_RETRY_S * 2 ** min(blob.attempts, 20)
        delay = min(_LAST_RETRY_S, exponential) * random.uniform(0.5, 1.0)  # noqa: S311  (jitter, not a secret)
        blob.attempts += 1
        asked: float | None = getattr(error, "retry_after_s", None)
        queue.hold(blob, now + max(delay, min(asked or 0.0, _RETRY_AFTER_MOST_S)))
    if blob.trouble_since is None:
        blob.trouble_since = min(since, now)
    if blob.stall is None and (grant is None or now - blob.trouble_since >= _STALL_AFTER_S):
        _begin_stall(blob, error.to_fault(), time.time() - (now - blob.trouble_since), outbox)


def fail(queue: Queue[BlobState], blob: BlobState, error: WeightlessError, outbox: Outbox) -> None:
    """No source will give the blob: those who wait are told, the rest waits for a better day."""
    blob.refusals.clear()  # all are asked again once the failure is no longer believed
    blob.failure = error
    blob.failure_until = time.monotonic() + min(_FAILURE_HOLDS_MOST_S, _FAILURE_HOLDS_S * 2**blob.failures)
    blob.failures = min(blob.failures + 1, 10)
    queue.drop_blob(blob, demand_only=True)
    queue.hold(blob, blob.failure_until)
    told = {waiter for waiters in blob.waiters.values() for waiter in waiters} | blob.awaiting_whole.keys()
    blob.waiters.clear()
    blob.awaiting_whole.clear()
    fault = error.to_fault()
    outbox.extend((port, protocol.Failed(blob=number, first=0, count=0, fault=fault)) for port, number in told)
    end_trouble(blob, outbox, healed=False)


def end_trouble(blob: BlobState, outbox: Outbox, *, healed: bool) -> None:
    """Something came (`healed`), or nothing is expected any more."""
    if healed:
        blob.clear_trouble()
    blob.trouble_since = None
    if blob.stall is None:
        return
    blob.stall = None
    for mount in blob.mounts:
        if mount.stalled.pop(blob, None) and not mount.stalled:
            outbox.extend((port, protocol.Stalled(fault=None)) for port in mount.ports)


def _begin_stall(blob: BlobState, fault: Fault, since: float, outbox: Outbox) -> None:
    blob.stall = fault
    for mount in blob.mounts:
        if not mount.stalled:
            outbox.extend((port, protocol.Stalled(fault=fault)) for port in mount.ports)
        mount.stalled[blob] = (since, fault)
