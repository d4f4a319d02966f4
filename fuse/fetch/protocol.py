"""The messages of the fetcher.

Two protocols. **Administration**: a holder of mounts (node plugin, `weightless mount`) or a command (`pull`, `inspect`, `cache`)
connects to `fetcher.sock` in the cache directory and asks; every request has an `id` that its answer repeats; answers may come in
any order. **Session**: a socket that an administrator hands over with `Attach`; a worker holds the other end, and may ask for
the blobs of its table and nothing else. A blob is named by its index in the table.

Closing the administration connection detaches all that it attached and takes back all that it granted.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from fuse.artifact.profile import Runs
from fuse.errors import Fault
from fuse.fetch.tally import CacheRoom
from fuse.filesystem.table import View
from fuse.registry.access import Access

VERSION: Final = 4
NEEDS: Final = 1
"""The oldest peer, holder or fetcher, that this version can speak with (docs/ARCHITECTURE.md, Versions)."""
PROFILES_SINCE: Final = 2
"""The version that knows `FindProfile`, and in sessions `Order` and `Learned`."""
COUNTS_SINCE: Final = 3
"""The version that answers `Progress` without a mount, and counts more than bytes and requests."""
COPIES_SINCE: Final = 4
"""The version that knows copies of parts of blobs: `Attach.copy_out`, and `Whole.copies`, without which a holder would read all
of such a tree into memory."""
SOCKET_NAME: Final = "fetcher.sock"
LOCK_NAME: Final = "fetcher.lock"
BLOCK_BYTES: Final = 1024 * 1024
"""The unit of presence, checksum and notification."""

Priority = Literal["demand", "readahead", "background"]


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="op"):
    pass


# ---- administration: requests ----


class Hello(_Message, frozen=True, kw_only=True, tag="hello"):
    id: int
    version: int = VERSION
    needs: int = NEEDS


class Resolve(_Message, frozen=True, kw_only=True, tag="resolve"):
    """Proves with `access`'s own credentials that the manifest may be pulled, and computes (or remembers) its inode table."""

    id: int
    reference: str
    access: Access
    view: View = View()
    look_again: bool = False
    """The registry is asked for a chunk index and a profile even if it had none a moment ago, and both are waited for."""
    traceparent: str = ""
    """W3C trace context of whoever asks; empty where nobody traces."""


class Attach(_Message, frozen=True, kw_only=True, tag="attach"):
    """Serves the session socket (first descriptor) for the table (second descriptor, the encoded bytes).

    The same mount again, with the same table, gets the new session in place of the old one, and keeps its grants.
    """

    id: int
    mount: str
    registry: str
    """The host of the references that the table was made of: blobs are shared by mounts from one registry, and with no others."""
    reference: str = ""
    """Of the artifact, with its repository: its chunk index and profile are used if they are known; empty for what is none."""
    copy_out: bool = False
    """Once everything is there, parts of blobs that only need to be files of their own for the next mount to be native are made
    such, where there is room."""


class Grant(_Message, frozen=True, kw_only=True, tag="grant"):
    """The blobs of `mount` may be fetched with `access`; `grant` names this for `Revoke`.

    The registry of `reference` must be the one that the mount was attached with (else Conflict).
    """

    id: int
    mount: str
    grant: str
    reference: str
    access: Access
    traceparent: str = ""
    """Of the publish: transfers with this grant are linked to it."""


class Revoke(_Message, frozen=True, kw_only=True, tag="revoke"):
    id: int
    mount: str
    grant: str


class Detach(_Message, frozen=True, kw_only=True, tag="detach"):
    id: int
    mount: str


class Progress(_Message, frozen=True, kw_only=True, tag="progress"):
    """How much of a mount's blobs is in the cache."""

    id: int
    mount: str
    """Empty: of none, and nothing is wanted but the fetcher's totals."""


class CacheList(_Message, frozen=True, kw_only=True, tag="cache_list"):
    id: int


class CacheRemove(_Message, frozen=True, kw_only=True, tag="cache_remove"):
    """Removes blobs by digest; all that no mount holds when `digests` is empty. A blob in use is refused (Conflict)."""

    id: int
    digests: tuple[str, ...] = ()


class CachePin(_Message, frozen=True, kw_only=True, tag="cache_pin"):
    """Keeps blobs from eviction and removal until `CacheUnpin`, also over restarts.

    Either the blobs of a table (the one descriptor, encoded) of `registry`, pinned as `name`; or blobs that are there, by
    digest, each pinned by its own.
    """

    id: int
    name: str = ""
    registry: str = ""
    digests: tuple[str, ...] = ()
    whole: bool = False
    """For the native mount called `name`: only if each blob is complete and verified, else NotFound. Answered by `Whole`."""


class CacheUnpin(_Message, frozen=True, kw_only=True, tag="cache_unpin"):
    id: int
    names: tuple[str, ...]


class CacheVerify(_Message, frozen=True, kw_only=True, tag="cache_verify"):
    """Reads blobs again and compares block checksums and, where complete, digests; damaged blocks are forgotten."""

    id: int
    digests: tuple[str, ...] = ()


class FindProfile(_Message, frozen=True, kw_only=True, tag="find_profile"):
    """Asks for the profile of an artifact that is known here; answered by `FoundProfile`, or refused with NotFound."""

    id: int
    reference: str
    """Pinned to the manifest."""


class Cancel(_Message, frozen=True, kw_only=True, tag="cancel"):
    """Gives up the request with this id, which then answers with a `Cancelled` fault."""

    id: int


Request = (
    Hello
    | Resolve
    | Attach
    | Grant
    | Revoke
    | Detach
    | Progress
    | CacheList
    | CacheRemove
    | CachePin
    | CacheUnpin
    | CacheVerify
    | FindProfile
    | Cancel
)

# ---- administration: answers ----


class Welcome(_Message, frozen=True, kw_only=True, tag="welcome"):
    id: int
    pid: int
    version: int = VERSION
    needs: int = NEEDS


class Done(_Message, frozen=True, kw_only=True, tag="done"):
    id: int


class Refused(_Message, frozen=True, kw_only=True, tag="refused"):
    id: int
    fault: Fault


class Resolved(_Message, frozen=True, kw_only=True, tag="resolved"):
    """Comes with one descriptor: a sealed memfd of the encoded table."""

    id: int
    digest: str
    """Of the manifest that was chosen."""
    reference: str
    """Canonical, pinned to `digest`."""
    media_type: str
    table: str
    """`table.identity` of the bytes."""
    bytes_total: int
    files: int
    proven_at: float | None = None
    """The registry could not be asked: by the offline policy, the proof of that time (Unix) stood in for it."""
    native: bool = False
    """Everything is in the cache, complete and verified, and the kernel can show it alone (`fuse.filesystem.native`)."""


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a blob of a table that is a file of its own."""

    blob: int
    offset: int
    size: int
    name: str
    """Where the file lies, as in `Whole.names`."""


class Whole(_Message, frozen=True, kw_only=True, tag="whole"):
    """The blobs of a table are complete, verified, and pinned while the machine runs."""

    id: int
    pin: str
    """For `CacheUnpin`."""
    names: tuple[str, ...]
    """Where the content of each lies, relative to `blobs` in the cache directory."""
    copies: tuple[Copy, ...] = ()
    """Since version 4: pinned as well."""


class FetcherTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Since the fetcher started, for all of its users; what had to be asked for again counts again."""

    bytes_fetched: int = 0
    requests: int = 0
    counts: dict[str, int] = {}
    """By the names of `fuse.fetch.tally`; what is not counted yet is not there."""
    cache: CacheRoom | None = None
    """None where the disk could not be asked."""


class MountProgress(_Message, frozen=True, kw_only=True, tag="mount_progress"):
    id: int
    bytes_cached: int
    bytes_total: int
    bytes_fetched: int
    """From registries, for this mount's blobs, since the fetcher started; requests that had to be repeated count again."""
    requests: int
    rate_bytes_per_s: float
    """Over the last few seconds."""
    verified_blobs: int
    stalled_since: float | None = None
    """Unix time since when nothing came although something was asked for; None when all is well."""
    stalled_by: Fault | None = None
    failed_by: Fault | None = None
    """A fault that will not heal by itself (404, 403, a wrong digest)."""
    totals: FetcherTotals | None = None
    """Not of this mount: of the fetcher. None from one that does not count them."""


class CachedBlob(msgspec.Struct, frozen=True, kw_only=True):
    digest: str
    size: int
    bytes_cached: int
    complete: bool
    verified: bool
    pinned: bool
    used_at: float
    damaged_blocks: int = 0
    """Filled in by `CacheVerify` only."""
    pinned_by: tuple[str, ...] = ()
    """Names under which it was pinned by hand; `pinned` says that a mount holds it."""
    copy: bool = False
    """A part of another blob, as a file of its own for native mounts."""
    copy_of: str = ""
    """Digest of that blob, as far as it is remembered."""


class CacheBlobs(_Message, frozen=True, kw_only=True, tag="cache_blobs"):
    """One part of the answer to CacheList, CacheRemove (what was removed) or CacheVerify; `last` ends it."""

    id: int
    blobs: tuple[CachedBlob, ...]
    last: bool


class FoundProfile(_Message, frozen=True, kw_only=True, tag="found_profile"):
    """Comes with one descriptor: a sealed memfd of the encoded profile (`fuse.artifact.profile`)."""

    id: int
    source: str
    """`learned` from a load through this cache, or `pushed` to the registry by somebody."""


Answer = Welcome | Done | Refused | Resolved | Whole | MountProgress | CacheBlobs | FoundProfile

# ---- sessions: from the worker ----


class Open(_Message, frozen=True, kw_only=True, tag="open"):
    """Asks for the cache files of a blob; answered by `Opened` or `Failed`."""

    blob: int
    live: bool = False
    """The index is to go on saying whether the whole is verified; without, a verified blob's is a copy of the moment."""


class Want(_Message, frozen=True, kw_only=True, tag="want"):
    """Blocks that the reader needs (demand) or will need. Only demand is answered, by `Ready`, `Loan` or `Failed` block by
    block; wanting what is there already answers at once.

    With `whole`, for all blocks of a blob: answered once, by a `Ready` of no blocks when the whole has been compared with its
    digest, or by a `Failed` or `Quarantined` of the blob.

    With `anew`, what the session has wished at this priority before is forgotten: the order has changed. With `front`, it goes
    before what the session has wished at this priority; a fetcher that does not know that puts it behind."""

    blob: int
    first: int
    count: int
    priority: Priority
    whole: bool = False
    anew: bool = False
    front: bool = False


class Damaged(_Message, frozen=True, kw_only=True, tag="damaged"):
    """These blocks are marked present but do not match their checksum: forget them and fetch them anew when wanted."""

    blob: int
    first: int
    count: int


class Learned(_Message, frozen=True, kw_only=True, tag="learned"):
    """A load has touched these blocks, in this order. Only to a fetcher that has sent `Order`."""

    runs: Runs


FromWorker = Open | Want | Damaged | Learned

# ---- sessions: to the worker ----


class Opened(_Message, frozen=True, kw_only=True, tag="opened"):
    """Comes with two read-only descriptors, data and index (`fuse.cache.index`); with none when the blob cannot be cached (disk
    full): then every block comes as a `Loan`."""

    blob: int
    proven: bool = False
    """Whatever is present of it, or lent, has been proven by the artifact's own chunk index, which is authentic."""


class Ready(_Message, frozen=True, kw_only=True, tag="ready"):
    """These blocks are in the cache now."""

    blob: int
    first: int
    count: int


class Loan(_Message, frozen=True, kw_only=True, tag="loan"):
    """A block that could not be cached: its bytes are the content of the one descriptor, a memfd."""

    blob: int
    block: int


class Failed(_Message, frozen=True, kw_only=True, tag="failed"):
    """These blocks cannot be had (the fault is permanent); `count` 0 means the whole blob, for `Open` too."""

    blob: int
    first: int
    count: int
    fault: Fault


class Quarantined(_Message, frozen=True, kw_only=True, tag="quarantined"):
    """The finished blob does not match its digest: whatever was read of it is suspect; serve none of it any more."""

    blob: int
    fault: Fault


class Stalled(_Message, frozen=True, kw_only=True, tag="stalled"):
    """Nothing comes although blocks are wanted; the reason, for the volume's condition. `fault` None: it flows again."""

    fault: Fault | None = None


class Order(_Message, frozen=True, kw_only=True, tag="order"):
    """The first message of a session, and sent again when another order becomes known. Whoever sends it takes `Learned`.

    Only to the worker of a holder whose greeting says that it knows this: that started the worker.
    """

    runs: Runs
    """What an earlier load has touched, in its order; empty when none is known."""


ToWorker = Opened | Ready | Loan | Failed | Quarantined | Stalled | Order
