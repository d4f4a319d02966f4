"""The contract between holder and worker: what makes two mounts one."""

from __future__ import annotations

from fuse import spec
from fuse.filesystem.table import View

PARTS = (spec.Part(registry="registry.example", digest="sha256:00", view=View(exclude=("*.md",))),)


def test_a_strict_mount_is_another_one() -> None:
    """It shares neither pages nor processes with a lazy one."""
    assert spec.identity(PARTS) != spec.identity(PARTS, "strict")


def test_a_lazy_mount_has_the_identity_that_it_always_had() -> None:
    """Records and directories of earlier versions are named by it."""
    assert "l7yluoq7vsomkqei2dqnph7l" == spec.identity(PARTS) == spec.identity(PARTS, "lazy")


def test_each_label_is_another_mount() -> None:
    """A file system has one, and so have all its binds."""
    labels = ("", "a:b:c:s0", "a:b:c:s0:c1,c2")
    assert len({spec.identity(PARTS, label=label, native=native) for label in labels for native in (False, True)}) == 6
    assert spec.identity(PARTS, label="") == spec.identity(PARTS)
