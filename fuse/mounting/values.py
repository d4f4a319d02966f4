"""Values that go in and out of `fuse.mounting.manager`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fuse import spec
from fuse.artifact.reference import Reference
from fuse.fetch.limits import RegistryLimits
from fuse.filesystem.table import View
from fuse.mounting.fetcher_start import FetcherSettings
from fuse.mounting.pulse import LOOK_S


@dataclass(frozen=True, slots=True, kw_only=True)
class HolderSettings:
    """How a holder works. `name` tells holders of one run directory apart, and finds the keeper again after a restart."""

    cache_dir: Path
    run_dir: Path
    name: str = "holder"
    use_keeper: bool = True
    """Whether mounts outlive this process: yes for a node plugin. Without, they end with it."""
    keeper: Path | None = None
    """The socket of a keeper that runs by itself (`weightless keeper`). None: a keeper of our own, in the run directory."""
    successor: Callable[[], Sequence[int]] | None = None
    """Makes what a keeper needs to start another holder when this one dies (`fuse.keeper`, `revive`). None: others see to it."""
    without_resend: spec.WithoutResend = "wait"
    """What becomes of requests that a dead worker held, on kernels that give them to no other (before 6.9): they wait for ever,
    or the connection is aborted, and the mount made anew for later users."""
    native: spec.Native = "off"
    """Whether `resolve` says of what is whole that it can be shown natively; needs root."""
    label: str = ""
    """The SELinux context of what is mounted for whoever names none; empty: none."""
    copy_out: bool = False
    """Whether parts of blobs that have to be files of their own for native mounts are made such, where there is room."""
    native_dir: Path | None = None
    """Where a successor finds the native mounts. None: in the run directory, which a container may lose when it is restarted."""
    spare_worker: bool = False
    """Whether one worker is started ahead of need: for a holder of many mounts, which come and go."""
    look_s: float = LOOK_S
    """How often something is looked at that others wait for (`fuse.mounting.pulse`)."""
    uid: int | None = None
    """What workers and the fetcher become when this is root; None means one user each (65533, 65534), which is safer."""
    gid: int | None = None
    quota_bytes: int | None = None
    free_space_fraction: float | None = None
    connections: int | None = None
    bytes_per_s: int = 0
    """What the fetcher may read from all registries together; 0: what the link carries."""
    registries: Mapping[str, RegistryLimits] = field(default_factory=dict)
    """What is different for single registries, by the host of references."""
    log_level: str = "info"
    log_to_stderr: bool = False
    """Let the fetcher write to this process's standard error."""
    start_limit_s: float = 30.0
    """For the first worker of a mount; one that takes over has twice as long, and is then replaced again."""

    def fetcher(self) -> FetcherSettings:
        return FetcherSettings(
            cache_dir=self.cache_dir,
            run_dir=self.run_dir,
            uid=self.uid,
            gid=self.gid,
            quota_bytes=self.quota_bytes,
            free_space_fraction=self.free_space_fraction,
            connections=self.connections,
            bytes_per_s=self.bytes_per_s,
            registries=self.registries,
            log_level=self.log_level,
            log_to_stderr=self.log_to_stderr,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedArtifact:
    """An artifact that may be mounted: credentials were proven, its tree is known."""

    reference: str
    """Pinned to `digest`."""
    digest: str
    media_type: str
    view: View
    table: str
    """Identity of `content`."""
    content: bytes
    """The encoded inode table, which is not looked into here."""
    bytes_total: int
    files: int
    native: bool = False
    """It can be shown without a process of ours: everything is in the cache, complete and verified."""
    label: str = ""
    """The SELinux context that all files of its mount are to have; empty: what the node's policy says of such file systems."""
    proven_at: float | None = None
    """The registry could not be asked; by the offline policy a proof of that time (Unix) was good enough."""

    @property
    def parts(self) -> tuple[spec.Part, ...]:
        registry = Reference.parse(self.reference).host
        return (spec.Part(registry=registry, digest=self.digest, view=self.view),)

    @property
    def identity(self) -> str:
        """The id that its mount has, whoever mounts it, without strict verification."""
        return self.identity_with("lazy")

    def identity_with(self, verify: spec.Verify) -> str:
        """The id of its mount that verifies so."""
        return spec.identity(self.parts, verify, native=self.shown_natively(verify), label=self.label)

    def shown_natively(self, verify: spec.Verify) -> bool:
        """A strict mount never is: nobody would compare what the disk gives with what was verified."""
        return self.native and verify == "lazy"


@dataclass(frozen=True, slots=True, kw_only=True)
class LostMount:
    """What the keeper held and could not be taken back: to be mounted anew by whoever knows how, unless `kept`."""

    mount_id: str
    mountpoint: str
    reference: str
    grants: tuple[str, ...]
    reason: str
    kept: bool = False
    """The keeper holds it still, for a later version of the program, which alone understands it."""
