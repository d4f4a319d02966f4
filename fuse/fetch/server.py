"""The administration protocol: one thread a connection; what takes long (resolving, walking the cache) has a thread of its own.

Mounts belong to the connection that attached them and go with it. Only the user who started the fetcher, and root, may
administer it; never the user it became, as whom workers run.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from fuse import threads, tracing, wire
from fuse.artifact import profile
from fuse.artifact.digest import Digest
from fuse.artifact.manifest import Manifest
from fuse.artifact.reference import Reference
from fuse.errors import Cancelled, Conflict, InvalidArtifact, InvalidRequest, NotFound, Unavailable, WeightlessError
from fuse.fetch import protocol
from fuse.fetch.copier import Copier
from fuse.fetch.engine import Engine
from fuse.fetch.inventory import Inventory
from fuse.fetch.lookups import Lookup, Lookups
from fuse.fetch.mounts import Mount
from fuse.fetch.profiles import MountProfile
from fuse.fetch.proofs import Proofs
from fuse.fetch.reader import EngineReader
from fuse.fetch.resolve import resolve
from fuse.fetch.session import Session
from fuse.fetch.wholes import Wholes, keys_of
from fuse.filesystem import table as inode_table
from fuse.registry.access import Access
from fuse.registry.origin import Origin
from fuse.registry.repository import Repository
from fuse.registry.transport import Transport

_MOST_LONG_REQUESTS: Final = 64
_MOST_OF_ONE_REGISTRY: Final = 16
"""Of these, resolves that ask the same registry: one that drips its answers does not take the places of all others."""
_LAST_WORDS_S: Final = 1.0
"""How long a mount that is detached is waited for, until what its worker said at its end is on the disk."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Attached:
    mount: Mount
    registry: str
    manifests: tuple[Digest, ...]
    """Of the artifacts that are mounted."""
    profile: MountProfile | None
    session: Session | None


class Connection(threading.Thread):
    """One administrator."""

    def __init__(
        self,
        sock: socket.socket,
        engine: Engine,
        transport: Transport,
        proofs: Proofs,
        copier: Copier,
        on_end: Callable[[Connection], None],
    ) -> None:
        super().__init__(name="administration", daemon=True)
        self._channel: wire.Channel[protocol.Request] = wire.Channel(sock, protocol.Request)
        self._engine = engine
        self._inventory = Inventory(engine)
        self._wholes = Wholes(engine.shelf)
        self._copier = copier
        self._lookups = Lookups(engine.shelf.store.objects)
        self._transport = transport
        self._proofs = proofs
        self._on_end = on_end
        self._mounts: dict[str, _Attached] = {}
        self._long: dict[int, tuple[threading.Event, str]] = {}
        """What takes long, by request: how to give it up, and the registry that it asks (empty: none)."""
        self._lock = threading.Lock()
        self._telling = threading.Lock()
        """Held while a session is told of an order: the newest that is known is what it hears last."""
        self._peer_version = 0

    def run(self) -> None:
        try:
            while (received := self._channel.receive()) is not None:
                message, fds = received
                self._serve(message, fds)
        except (OSError, ValueError) as error:
            _log.warning("administration_refused", error=str(error))
        except Exception:  # noqa: BLE001  (the edge of a thread)
            _log.exception("administration_broken")
        finally:
            self._end()

    def close(self) -> None:
        self._channel.hang_up()

    def _end(self) -> None:
        with self._lock:
            running = [cancel for cancel, _ in self._long.values()]
        for cancel in running:
            cancel.set()
        for attached in list(self._mounts.values()):
            if attached.session is not None:
                attached.session.close()  # all of them, before one is waited for
        for attached in list(self._mounts.values()):
            self._detach(attached)
        self._mounts.clear()
        self._channel.hang_up()
        self._on_end(self)

    # ---- requests ----

    def _serve(self, message: protocol.Request, fds: list[int]) -> None:
        try:
            answer = self._answer(message, fds)
        except WeightlessError as error:
            answer = protocol.Refused(id=message.id, fault=error.to_fault())
        except Exception as error:  # noqa: BLE001  (the edge of a thread)
            _log.exception("request_failed", request=type(message).__name__)
            fault = WeightlessError(f"internal error: {error}").to_fault()
            answer = protocol.Refused(id=message.id, fault=fault)
        finally:
            wire.close_all(fds)
        if answer is not None:
            self._send(answer)

    def _answer(self, message: protocol.Request, fds: list[int]) -> protocol.Answer | None:
        match message:
            case protocol.Hello():
                return self._hello(message)
            case protocol.Resolve() | protocol.CacheList() | protocol.CacheRemove() | protocol.CacheVerify():
                self._begin(message)
                return None
            case protocol.Attach():
                self._attach(message, fds)
            case protocol.Grant():
                self._grant(message)
            case protocol.Revoke():
                self._engine.revoke(self._mount(message.mount).mount, message.grant)
            case protocol.Detach():
                self._detach(self._mount(message.mount))
                del self._mounts[message.mount]
            case protocol.CachePin():
                return self._pin(message, fds)
            case protocol.CacheUnpin():
                self._inventory.unpin(message.names)
            case protocol.FindProfile():
                self._find_profile(message)
                return None
            case protocol.Progress(mount=""):
                return protocol.MountProgress(
                    id=message.id,
                    bytes_cached=0,
                    bytes_total=0,
                    bytes_fetched=0,
                    requests=0,
                    rate_bytes_per_s=0.0,
                    verified_blobs=0,
                    totals=self._engine.totals(),
                )
            case protocol.Progress():
                return self._engine.progress(self._mount(message.mount).mount, message.id)
            case protocol.Cancel():
                with self._lock:
                    running = self._long.get(message.id)
                if running is not None:
                    running[0].set()
                return None
        return protocol.Done(id=message.id)

    def _hello(self, message: protocol.Hello) -> protocol.Answer:
        if message.needs > protocol.VERSION or message.version < protocol.NEEDS:
            raise InvalidRequest(
                f"the fetcher speaks version {protocol.VERSION} of its protocol, the caller version {message.version}",
                fix="use one version of weightless for one cache directory",
            )
        self._peer_version = message.version
        return protocol.Welcome(id=message.id, pid=os.getpid())

    def _repository(self, reference: Reference, access: Access) -> Repository:
        return Repository(reference, access, self._transport)

    def _mount(self, name: str) -> _Attached:
        try:
            return self._mounts[name]
        except KeyError:
            raise NotFound("nothing is attached under this name", where=name) from None

    def _grant(self, message: protocol.Grant) -> None:
        attached = self._mount(message.mount)
        reference = Reference.parse(message.reference)
        if reference.host != attached.registry:
            # What one registry sends, nobody but its own users may see: it is unproven until the whole blob is there.
            raise Conflict(f"the mount's blobs come from {attached.registry}", where=str(reference))
        self._use_chunk_index(attached, reference)
        source = self._repository(reference, message.access)
        self._engine.grant(attached.mount, message.grant, source, message.traceparent)

    def _use_chunk_index(self, attached: _Attached, reference: Reference) -> None:
        """Before anything is fetched for the mount, and before its worker opens a blob."""
        if attached.mount.chunks or reference.host != attached.registry:
            return
        for digest in attached.manifests:
            known = self._lookups.chunk_indexes.known(reference, digest)
            if known is not None:
                self._engine.know_chunks(attached.mount, known.chunks, authentic=known.authentic, key=known.key)

    def _attach(self, message: protocol.Attach, fds: list[int]) -> None:
        if len(fds) != 2:
            raise InvalidRequest(f"attach comes with 2 descriptors, not {len(fds)}", where=message.mount)
        try:
            content = wire.read_whole(fds[1], inode_table.MAX_TABLE_BYTES)
        except (OSError, ValueError) as error:
            raise InvalidArtifact(f"the inode table cannot be read: {error}", where=message.mount) from error
        table = inode_table.decode(content)
        keys = keys_of(table, message.registry)
        attached = self._mounts.get(message.mount)
        if attached is not None and [blob.key for blob in attached.mount.blobs] != keys:
            raise Conflict(
                "another table or registry is attached under this name", where=message.mount, fix="detach it first"
            )
        sock = socket.socket(fileno=fds.pop(0))
        if attached is None:
            manifests = tuple(Digest.parse(artifact.digest) for artifact in table.artifacts)
            attached = _Attached(self._engine.attach(message.mount, keys), message.registry, manifests, None, None)
            self._mounts[message.mount] = attached
        elif attached.session is not None:
            attached.session.close()  # a new worker takes the place of the old one
        if message.reference:
            reference = Reference.parse(message.reference)
            self._use_chunk_index(attached, reference)
            attached.profile = self._profile_of(reference, table)
        with self._telling:
            attached.session = Session(self._engine, attached.mount, sock, attached.profile)
            attached.session.start()
        if message.copy_out:
            self._copier.consider(table, keys)

    def _profile_of(self, reference: Reference, table: inode_table.Table) -> MountProfile | None:
        """Of a mount of one artifact: an order of several is no other mount's."""
        if self._peer_version < protocol.PROFILES_SINCE or len(table.artifacts) != 1:
            return None
        digest = Digest.parse(table.artifacts[0].digest)
        blobs = [(blob.digest, blob.size) for blob in table.blobs]
        return MountProfile(self._lookups.profiles, reference, digest, blobs)

    def _profile_found(self, reference: Reference, digest: Digest) -> None:
        """On the thread that asked the registry."""
        with self._telling:
            for attached in list(self._mounts.values()):
                if attached.session and attached.profile and attached.profile.is_of(reference, digest):
                    attached.session.tell_order()

    def _find_profile(self, message: protocol.FindProfile) -> None:
        reference = Reference.parse(message.reference)
        known = self._lookups.profiles.known(reference, reference.digest) if reference.digest is not None else None
        if known is None:
            raise NotFound(
                "no load of this artifact is known here",
                where=message.reference,
                fix="mount it, let something load it, and wait a few seconds, or unmount it",
            )
        source, found = known
        fd = wire.sealed_memfd("profile", profile.encode(found))
        try:
            self._send(protocol.FoundProfile(id=message.id, source=source), (fd,))
        finally:
            os.close(fd)

    def _pin(self, message: protocol.CachePin, fds: list[int]) -> protocol.Answer:
        if message.digests:
            self._inventory.pin_digests(message.digests)
            return protocol.Done(id=message.id)
        if len(fds) != 1:
            raise InvalidRequest(f"a pin comes with 1 descriptor, not {len(fds)}", where=message.name)
        try:
            content = wire.read_whole(fds[0], inode_table.MAX_TABLE_BYTES)
        except (OSError, ValueError) as error:
            raise InvalidArtifact(f"the inode table cannot be read: {error}", where=message.name) from error
        table = inode_table.decode(content)
        keys = keys_of(table, message.registry)
        if message.whole:
            return self._wholes.pin(message.name, table, keys, copies=self._knows_copies, request_id=message.id)
        self._inventory.pin(message.name, keys)
        return protocol.Done(id=message.id)

    def _detach(self, attached: _Attached) -> None:
        if attached.session is not None:
            attached.session.close()
            attached.session.join(_LAST_WORDS_S)
        self._engine.detach(attached.mount)

    # ---- what takes long ----

    def _begin(
        self, message: protocol.Resolve | protocol.CacheList | protocol.CacheRemove | protocol.CacheVerify
    ) -> None:
        cancel = threading.Event()
        registry = Reference.parse(message.reference).host if isinstance(message, protocol.Resolve) else ""
        with self._lock:
            if registry and sum(other == registry for _, other in self._long.values()) >= _MOST_OF_ONE_REGISTRY:
                raise Unavailable(
                    f"{_MOST_OF_ONE_REGISTRY} requests to this registry are under way already",
                    where=registry,
                    fix="try again later",
                )
            if len(self._long) >= _MOST_LONG_REQUESTS:
                raise Unavailable(f"{_MOST_LONG_REQUESTS} requests are under way already", fix="try again later")
            if message.id in self._long:
                raise InvalidRequest(f"request {message.id} is under way already")
            self._long[message.id] = (cancel, registry)

        def work() -> None:
            try:
                self._serve_long(message, cancel)
            finally:
                with self._lock:
                    self._long.pop(message.id, None)

        if not threads.begin(threading.Thread(target=work, name=f"request-{message.id}", daemon=True)):
            with self._lock:
                del self._long[message.id]
            raise Unavailable(
                "no thread can be started for it", fix="raise the node's limit of processes, or try again"
            )

    def _serve_long(
        self,
        message: protocol.Resolve | protocol.CacheList | protocol.CacheRemove | protocol.CacheVerify,
        cancel: threading.Event,
    ) -> None:
        try:
            match message:
                case protocol.Resolve():
                    with tracing.span("weightless.fetcher.resolve", kind="server", parent=message.traceparent):
                        self._resolve(message, cancel)
                case protocol.CacheList():
                    self._send_blobs(message.id, self._inventory.blobs())
                case protocol.CacheRemove():
                    self._send_blobs(message.id, self._inventory.remove(message.digests))
                case protocol.CacheVerify():
                    self._send_blobs(message.id, self._inventory.verify(message.digests, cancel))
        except WeightlessError as error:
            shown = Cancelled("given up") if cancel.is_set() else error
            self._send(protocol.Refused(id=message.id, fault=shown.to_fault()))
        except Exception as error:  # noqa: BLE001  (the edge of a thread)
            _log.exception("request_failed", request=type(message).__name__)
            fault = WeightlessError(f"internal error: {error}").to_fault()
            self._send(protocol.Refused(id=message.id, fault=fault))

    def _resolve(self, message: protocol.Resolve, cancel: threading.Event) -> None:
        reference = Reference.parse(message.reference)
        repository = self._repository(reference, message.access)
        leave = self._proofs.of(message.access, reference.name)
        lookups: list[Lookup | None] = []

        def look_up(manifest: Manifest) -> None:
            origin = partial(Origin, reference, message.access, self._transport)
            lookups.append(
                self._lookups.begin(
                    origin, reference, manifest, again=message.look_again, on_profile=self._profile_found
                )
            )

        with EngineReader(self._engine, repository, reference.host, cancel) as reader:
            found = resolve(
                reference,
                repository,
                self._engine.shelf.store.objects,
                reader,
                message.view,
                cancel=cancel,
                leave=leave,
                on_manifest=look_up,
            )
        for lookup in lookups:
            if lookup is not None:
                lookup.wait(everything=message.look_again)
        if cancel.is_set():
            raise Cancelled("given up", where=message.reference)
        fd = wire.sealed_memfd("table", found.encoded)
        try:
            answer = protocol.Resolved(
                id=message.id,
                digest=str(found.manifest_digest),
                reference=str(found.reference),
                media_type=found.media_type,
                table=inode_table.identity(found.encoded),
                bytes_total=found.table.total_bytes,
                files=sum(node.kind == "f" for node in found.table.nodes),
                proven_at=found.proven_at,
                native=self._shown_natively(found.table, reference.host),
            )
            self._send(answer, (fd,))
        finally:
            os.close(fd)

    @property
    def _knows_copies(self) -> bool:
        return self._peer_version >= protocol.COPIES_SINCE

    def _shown_natively(self, table: inode_table.Table, registry: str) -> bool:
        return self._wholes.shown_by(table, keys_of(table, registry), copies=self._knows_copies) is not None

    def _send_blobs(self, request_id: int, blobs: Iterator[protocol.CachedBlob]) -> None:
        for portion in wire.portions(blobs):
            self._send(protocol.CacheBlobs(id=request_id, blobs=portion, last=False))
        self._send(protocol.CacheBlobs(id=request_id, blobs=(), last=True))

    def _send(self, answer: protocol.Answer, fds: tuple[int, ...] = ()) -> None:
        try:
            self._channel.send(answer, fds)
        except OSError:
            self._channel.hang_up()  # gone; the receiving thread sees it and cleans up
