"""Publishing and unpublishing: the order of steps, and how they are undone.

A publish resolves the reference with the credentials of its own request (that is the proof that it may pull, whatever the cache
holds), writes a record, holds the shared mount, binds it to the target, and marks the record. The record comes first and
goes last, so whoever dies in between leaves something that says what to undo. Undoing is the same whether a publish failed,
was cancelled, or is being taken back: unbind, remove the directory, drop the mount, remove the record; each step is nothing
where there is nothing to do.

Called from many threads; `Operations` keeps those of one target apart. It knows neither gRPC nor paths that are not checked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

import msgspec
import structlog

from csi import mounts
from csi.admissions import Admissions
from csi.mounts import Checkpoint, SharedMounts
from csi.operations import Operation, Operations
from csi.proof import Admitting, proven
from csi.requests import PublishRequest, VolumeKey
from csi.targets import Target, TargetRules
from csi.volumes import VolumeRecord, VolumeRecords, grant_of
from fuse import tracing
from fuse.credentials.given import Given, is_weaker
from fuse.errors import Conflict, Unauthenticated, WeightlessError
from fuse.filesystem.table import View
from fuse.mounting.access import Admission
from fuse.mounting.manager import ResolvedArtifact
from fuse.mounting.status import Health
from fuse.registry.access import Access

_LEAST_RENEWAL_S: Final = 10.0
"""Credentials that end sooner than this after they were looked up are not looked up sooner for that."""

_log = structlog.get_logger()


class AccessSource(Admitting, Protocol):
    """What is needed of `fuse.mounting.access.AccessReader`."""

    def marker(self) -> Hashable: ...


class Publisher:
    """The volumes of this node."""

    def __init__(
        self,
        *,
        records: VolumeRecords,
        shared: SharedMounts,
        access: AccessSource,
        rules: TargetRules,
        checkpoint: Checkpoint = lambda _: None,
    ) -> None:
        """`checkpoint` is called with the name of every step that was done: where a test kills the process."""
        self.records = records
        self.shared = shared
        self.operations: Operations[None] = Operations()
        self._access = access
        self._rules = rules
        self._checkpoint = checkpoint
        self.admissions = Admissions()
        self.on_unfinished: Callable[[VolumeRecord], None] = lambda _: None
        """Called for a record whose undoing failed: somebody should try again."""
        self.on_published: Callable[[VolumeRecord], None] = lambda _: None
        """Called for a record whose volume was made just now, not for one that was there."""

    # ---- the calls of kubelet ----

    def publish(self, request: PublishRequest, limit_s: float | None = None) -> None:
        """Returns when the volume can be read at its target. `limit_s` bounds the waiting for others only."""
        operation: Operation[None] = Operation("publish", request.key.volume_id, request)
        self.operations.run(
            operation,
            str(request.key.target.path),
            lambda own: self._publish(own, request),
            cancels=("repair", "renewal"),
            limit_s=limit_s,
        )

    def unpublish(self, key: VolumeKey, limit_s: float | None = None) -> None:
        """Returns when nothing of the volume is left at its target; cancels a publish that is under way."""
        operation: Operation[None] = Operation("unpublish", key.volume_id, key)
        self.operations.run(
            operation,
            str(key.target.path),
            lambda _: self._unpublish(key),
            cancels=("publish", "repair", "renewal"),
            limit_s=limit_s,
        )

    def renew(self, record: VolumeRecord, *, fresh: bool = False) -> bool:
        """Looks up the credentials of a published volume again, with what its last request brought; whether it has good ones.

        `fresh`: what is remembered of credentials does not count. Raises InProgress when something else is under way there.
        """
        done = False

        def work(operation: Operation[None]) -> None:
            nonlocal done
            current = self.records.get(record.name)  # read again: kubelet may have been faster
            if current is not None and current.stage == "published" and self.is_served(current):
                given = self.admissions.given(current.name)
                done = self._renew(operation, current, given, fresh=fresh)

        self.operations.run(Operation("renewal", record.volume_id, record.name), record.target, work, limit_s=0)
        return done

    def find(self, key: VolumeKey) -> VolumeRecord | None:
        """The record of a published volume."""
        record = self.records.get(key.name)
        return record if record is not None and record.stage == "published" else None

    def health(self, record: VolumeRecord) -> Health:
        return self.shared.health(record.identity)

    def served_by(self, record: VolumeRecord) -> str:
        """ "fuse" or "native", at once; empty when nothing serves it."""
        return self.shared.served_by(record.identity)

    # ---- steps ----

    def _publish(self, operation: Operation[None], request: PublishRequest) -> None:
        name = request.key.name
        target = request.key.target
        reference = request.attributes.reference
        record = self.records.get(name)
        if record is not None and record.stage == "published":
            if record.parameters != request.parameters:
                raise Conflict(
                    f"volume {record.volume_id} is published there with other attributes, mount options, access mode or readonly",
                    where=str(target.path),
                    fix="unpublish it first",
                )
            if self.is_served(record):
                self._renew_with(operation, record, request)
                return
            # Gone under us (the node was restarted): the same content is mounted again, whatever the tag says by now.
            reference = record.pinned
        self._check_free(request.key)
        given = request.given()
        with tracing.span("weightless.resolve", {"weightless.reference": reference}) as span:
            admission, artifact = self._admitted(operation, reference, given, request.attributes.view)
            span.set("weightless.digest", artifact.digest)
            span.set("weightless.bytes_total", artifact.bytes_total)
            span.set("weightless.credentials.rung", admission.rung)
        native = artifact.native and request.attributes.native != "off"
        artifact = replace(artifact, native=native, label=request.label or artifact.label)
        self._step(operation, "publish-resolved")
        if record is not None:
            self.undo(record)
        wanted = VolumeRecord(
            name=name,
            volume_id=request.key.volume_id,
            target=str(target.path),
            stage="publishing",
            reference=request.attributes.reference,
            pinned=artifact.reference,
            view=request.attributes.view,
            prefetch=request.attributes.prefetch,
            verify=request.attributes.verify,
            parameters=request.parameters,
            native=artifact.native,
            label=artifact.label,
            identity=mounts.identity_of(artifact, request.attributes.verify),
            bytes_total=artifact.bytes_total,
            files=artifact.files,
            pod=request.pod,
            rung=admission.rung,
        )
        with self._undoing(wanted):
            self.records.put(wanted)
            self._step(operation, "publish-recorded")
            with tracing.span("weightless.mount") as span:
                self._hold(wanted, artifact, admission, lambda step: self._step(operation, f"publish-{step}"))
                span.set("weightless.served_by", self.served_by(wanted))
            self._step(operation, "publish-held")
            mounts.bind(self.shared.path(wanted.identity), target)
            self._step(operation, "publish-bound")
            published = msgspec.structs.replace(wanted, stage="published")
            self.records.put(published)
            self._checkpoint("publish-done")
        self.admissions.note(name, given, admission)
        _log.info(
            "volume_admitted", volume_id=wanted.volume_id, pod=wanted.pod, rung=admission.rung, by=admission.source
        )
        self.on_published(published)

    def _unpublish(self, key: VolumeKey) -> None:
        self._checkpoint("unpublish-begun")
        record = self.records.get(key.name)
        if record is None:
            # Published by nobody that we know of. What of ours is there all the same goes; an empty directory goes, too.
            other = self._holder(key)
            if other is None:
                mounts.unbind(key.target)
                key.target.remove()
            if self.records.is_unreadable(key.name):
                self.shared.drop_grant(grant_of(key.name, str(key.target.path)))
                self.records.remove(key.name)
            return
        marked = msgspec.structs.replace(record, stage="unpublishing")
        self.records.put(marked)
        self._checkpoint("unpublish-recorded")
        try:
            self.undo(marked)
        except WeightlessError:
            self.on_unfinished(marked)
            raise

    def undo(self, record: VolumeRecord) -> None:
        """Leaves nothing of this record, whatever of it was done. Raises a WeightlessError when something resists."""
        target = self._target(record)
        if target is not None:
            mounts.unbind(target)
            self._checkpoint("undo-unbound")
            target.remove()
            self._checkpoint("undo-target-removed")
        self.shared.drop(record.identity, record.grant, lambda step: self._checkpoint(f"undo-{step}"))
        self._checkpoint("undo-dropped")
        self.records.remove(record.name)
        self.admissions.forget(record.name)
        self._checkpoint("undo-done")

    def remount(self, operation: Operation[None], record: VolumeRecord) -> None:
        """Shows a published volume again that is not there any more. What is there stays when this fails."""
        target = self._target(record)
        if target is None:
            return
        # Another volume may have brought the mount back already: it is shared, but this volume's hold on it is its own.
        if not self.shared.is_held(record.identity, record.grant):
            # The request's own credentials are not on disk: after a restart those of the node, or none, may do.
            given = self.admissions.given(record.name)
            admission, artifact = self._admitted_again(operation, record, given)
            if mounts.identity_of(artifact, record.verify) != record.identity:
                raise WeightlessError("the artifact's identity has changed", where=record.pinned)
            operation.check()
            self._hold(record, artifact, admission, lambda _: operation.check())
            self.admissions.note(record.name, given, admission)
        operation.check()
        if not self.is_served(record):
            mounts.bind(self.shared.path(record.identity), target)

    # ---- what is there ----

    def is_served(self, record: VolumeRecord) -> bool:
        """Whether the target shows the live mount of this record."""
        path = self.shared.path(record.identity)
        return self.shared.is_live(record.identity) and mounts.shows(Path(record.target), path)

    def _target(self, record: VolumeRecord) -> Target | None:
        """The target of a record; None when kubelet's directory is another one now, where nothing of ours can be."""
        try:
            return self._rules.parse(record.target)
        except WeightlessError as error:
            _log.warning("record_outside_kubelet_dir", error=error)
            return None

    def _holder(self, key: VolumeKey) -> VolumeRecord | None:
        """Another volume that is at this target."""
        path = str(key.target.path)
        return next(
            (record for record in self.records.all() if record.target == path and record.name != key.name), None
        )

    def _check_free(self, key: VolumeKey) -> None:
        other = self._holder(key)
        if other is not None:
            raise Conflict(
                f"another volume, {other.volume_id}, is published there", where=other.target, fix="unpublish it first"
            )
        there = mounts.bound(key.target)
        if there is None:
            key.target.check_usable()
        elif not there.ours:
            raise Conflict(f"{there.file_system} is mounted there", where=str(key.target.path), fix="unmount it first")

    # ---- small parts ----

    def _hold(
        self, record: VolumeRecord, artifact: ResolvedArtifact, admission: Admission, checkpoint: Checkpoint
    ) -> None:
        self.shared.hold(
            artifact,
            prefetch=record.prefetch,
            verify=record.verify,
            grant=record.grant,
            access=admission.access,
            checkpoint=checkpoint,
        )

    def _step(self, operation: Operation[None], name: str) -> None:
        self._checkpoint(name)
        operation.check()

    @contextmanager
    def _undoing(self, record: VolumeRecord) -> Iterator[None]:
        """Undoes `record` when the block fails, whatever with; what resists is left to `on_unfinished`."""
        try:
            yield
        except BaseException:
            try:
                self.undo(record)
            except WeightlessError as failure:
                _log.warning("undo_failed", volume_id=record.volume_id, error=failure)
                self.on_unfinished(record)
            raise

    # ---- credentials ----

    def _admitted(
        self, operation: Operation[None], reference: str, given: Given, view: View, admission: Admission | None = None
    ) -> tuple[Admission, ResolvedArtifact]:
        """`admission`: what was looked up already."""

        def ask(access: Access) -> ResolvedArtifact:
            return self.shared.resolve(reference, access, view, operation.cancel)

        return proven(self._access, reference, given, ask, operation.cancel, admission)

    def _admitted_again(
        self, operation: Operation[None], record: VolumeRecord, given: Given, admission: Admission | None = None
    ) -> tuple[Admission, ResolvedArtifact]:
        """Of a published volume. It stays the mount that it was, whatever is in the cache or in the configuration by now."""
        admission, artifact = self._admitted(operation, record.pinned, given, record.view, admission)
        return admission, replace(artifact, native=record.native, label=record.label)

    def _renew_with(self, operation: Operation[None], record: VolumeRecord, request: PublishRequest) -> None:
        """A repeated publish may bring newer credentials. It never harms the mount that is there: kubelet would take the volume
        away from a running pod if it saw an error (kubernetes issue 121271)."""
        try:
            given = request.given()
        except WeightlessError as error:
            _log.warning("credentials_not_renewed", volume_id=record.volume_id, error=error)
        else:
            self._renew(operation, record, given)
            operation.check()

    def _renew(self, operation: Operation[None], record: VolumeRecord, given: Given, *, fresh: bool = False) -> bool:
        """Whether the volume goes on with credentials that are good now; if not, with what it had."""
        try:
            admission = self._access.admit(record.pinned, given, cancel=operation.cancel, fresh=fresh)
            _check_not_weaker(admission, record)
            if not self.admissions.is_same(record.name, admission):
                admission, artifact = self._admitted_again(operation, record, given, admission)
                # Those that count in the end may have been looked up anew on the way.
                _check_not_weaker(admission, record)
                operation.check()
                self._hold(record, artifact, admission, lambda _: None)
                _log.info("credentials_renewed", volume_id=record.volume_id, rung=admission.rung, by=admission.source)
        except WeightlessError as error:
            if not operation.cancel.is_set():
                _log.warning("credentials_not_renewed", volume_id=record.volume_id, error=error)
            return False
        self.admissions.note(record.name, given, admission, least_s=_LEAST_RENEWAL_S, now=time.monotonic())
        return True


def _check_not_weaker(admission: Admission, record: VolumeRecord) -> None:
    """Raises Unauthenticated for what stands below the rung that the volume was let in by."""
    if is_weaker(admission.rung, record.rung):
        why = "; ".join(admission.notes) or "they are not there any more"
        raise Unauthenticated(f"credentials of {record.rung} cannot be had: {why}", where=record.pinned)
