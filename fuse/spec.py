"""The contract between the privileged side and a worker: what to mount, and the few messages they exchange.

One SOCK_SEQPACKET socket a worker (`fuse.wire`). The privileged side sends `Start` first; the worker answers `Started` once the
kernel's INIT is answered and requests are served, or `Broken`. The worker ends when the socket's peer is gone: it never
outlives the process that could replace it.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Final, Literal

import msgspec

from fuse.errors import Fault
from fuse.filesystem.table import View

VERSION: Final = 1

Prefetch = Literal["full", "none"]
WithoutResend = Literal["wait", "abort"]
"""What becomes of requests that a dead worker held, on kernels that give them to no other."""
Verify = Literal["lazy", "strict"]
"""`strict`: no byte of a blob is served before the whole of it, or an authentic chunk index, has proven it."""

Native = Literal["auto", "off"]
"""`auto`: what is in the cache, complete and verified, when it is mounted is shown by the kernel alone, where that can be."""


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One artifact of a mount: where it comes from, the manifest's digest, the directory it appears in, what of it is shown.

    Defaults are left out, so that a field which a later version adds does not change the identity of what has no use for it.
    """

    registry: str
    """Its host. The digest does not stand for it: until a blob is whole, its bytes are what this registry says."""
    digest: str
    directory: str = ""
    view: View = View()


class MountSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One FUSE file system. Mounts with the same `identity` are shared."""

    parts: tuple[Part, ...]
    table: str
    """`fuse.filesystem.table.identity` of the inode table, whose bytes are handed over beside the spec."""
    reference: str
    """What the first user asked for, pinned; for people to read."""
    prefetch: Prefetch = "full"
    verify: Verify = "lazy"
    uid: int = 0
    gid: int = 0
    native: bool = False
    """It was to be shown by the kernel alone, which turned out to be impossible."""
    label: str = ""
    """The SELinux context of all its files; empty: that of the file system."""
    version: int = VERSION

    @property
    def identity(self) -> str:
        return identity(self.parts, self.verify, native=self.native, label=self.label)

    @property
    def registry(self) -> str:
        """Where all of its blobs come from."""
        return self.parts[0].registry


def identity(parts: tuple[Part, ...], verify: Verify = "lazy", *, native: bool = False, label: str = "") -> str:
    """A short name, safe as a file name, of what is shown: equal for equal repositories, digests, directories, views.

    A strict mount is another one: it would see the pages that the kernel keeps of what a lazy one has read. And so is a native
    one: a pod that comes when everything is there shall have it, while others go on with FUSE. A file system has one SELinux
    label, so each label has its own.
    """
    content = (
        msgspec.json.encode(parts)
        + (b"" if verify == "lazy" else verify.encode())
        + (b"native" if native else b"")
        + (b"" if not label else b"label=" + label.encode())
    )
    return base64.b32encode(hashlib.sha256(content).digest()[:15]).decode().lower()


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="op"):
    pass


# ---- to the worker ----


class Start(_Message, frozen=True, kw_only=True, tag="start"):
    """Comes with three descriptors: the FUSE device, a fetch session, the inode table's bytes."""

    spec: MountSpec
    init: bytes
    """The kernel's FUSE_INIT message as it was read from the fresh device."""
    reply: bytes = b""
    """The reply that the first worker gave; empty when this is the first. With it, this is a takeover."""
    uid: int | None = None
    gid: int | None = None
    """What to become before anything else is read; None keeps the user."""
    resend: bool = True
    """False plays a kernel before 6.9, for tests: what the last worker held is not asked for again."""


class NewSession(_Message, frozen=True, kw_only=True, tag="new_session"):
    """Comes with one descriptor: a session with a new fetcher, the old one is gone. Ask again for what is outstanding."""


class SetPrefetch(_Message, frozen=True, kw_only=True, tag="set_prefetch"):
    prefetch: Prefetch


class Ask(_Message, frozen=True, kw_only=True, tag="ask"):
    """Asks for `Report`."""

    id: int


class Stop(_Message, frozen=True, kw_only=True, tag="stop"):
    """Answer what is being answered, take no new request, and end."""


ToWorker = Start | NewSession | SetPrefetch | Ask | Stop

# ---- from the worker ----


class Started(_Message, frozen=True, kw_only=True, tag="started"):
    reply: bytes
    """The INIT reply that went to the kernel: kept for the next worker."""


class Broken(_Message, frozen=True, kw_only=True, tag="broken"):
    fault: Fault


class SessionLost(_Message, frozen=True, kw_only=True, tag="session_lost"):
    """The fetcher has hung up. If it lives, nobody but the worker has seen that: it needs a `NewSession`."""

    session: int
    """Which: 1 is that of `Start`. A notice that crossed with a newer session says nothing any more."""


class Report(_Message, frozen=True, kw_only=True, tag="report"):
    id: int
    reads: int
    bytes_read: int
    waiting: int
    """Reads that wait for blocks now."""
    waited_s: float
    """Sum of the time that reads have waited."""
    open_files: int
    at_once: int = 0
    """Reads among them whose bytes were all there: for which nobody waited."""


class Condition(_Message, frozen=True, kw_only=True, tag="condition"):
    """Sent when it changes: None when all is well."""

    fault: Fault | None = None
    since: float = 0.0
    permanent: bool = False


FromWorker = Started | Broken | SessionLost | Report | Condition
