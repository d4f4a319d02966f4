"""Where a volume may be published, and the few things done to such a place: make it, remove it, name it safely.

A target path comes from outside, and volumes that pods can write lie beside it. So a path must have one of kubelet's two
shapes, no component below kubelet's directory may be a symbolic link, and directories are reached through descriptors: what was
checked is what is used. Nothing here looks at a target itself: it may be a mount that does not answer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fuse.errors import InvalidRequest, MountFailed

_MAX_PATH_BYTES: Final = 4095
_COMPONENT: Final = r"[^/\x00-\x1f\x7f]+"
_POD = re.compile(rf"pods/[A-Za-z0-9][A-Za-z0-9._-]{{0,127}}/volumes/kubernetes\.io~csi/{_COMPONENT}/mount")
_PLUGINS = re.compile(rf"plugins/kubernetes\.io/csi(/{_COMPONENT})+")
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Target:
    """A path that has passed `TargetRules.parse`."""

    root: Path
    """Kubelet's directory, with no symbolic link in it."""
    relative: str

    @property
    def path(self) -> Path:
        """As the kernel's mount table names it."""
        return self.root / self.relative

    @property
    def vanished(self) -> bool:
        """Whether the pod's own directory is gone, which kubelet keeps as long as it knows the pod."""
        parts = self.relative.split("/")
        if parts[0] != "pods" or not (self.root / "pods").is_dir():
            return False
        try:
            os.lstat(self.root / "pods" / parts[1])
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return False

    @contextmanager
    def parent(self) -> Iterator[tuple[int, str]]:
        """A descriptor of the parent directory, and the last component. Raises OSError."""
        *parents, name = self.relative.split("/")
        fd = os.open(self.root, _DIRECTORY)
        try:
            for component in parents:
                # Kubelet's directory itself is the administrator's; nothing below it may be a symbolic link.
                following = os.open(component, _DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                os.close(fd)
                fd = following
            yield fd, name
        finally:
            os.close(fd)

    @contextmanager
    def place(self) -> Iterator[Path]:
        """A path for mount(2) and umount(2) that leads to this directory whatever becomes of its parents' names.

        Raises OSError.
        """
        with self.parent() as (parent, name):
            yield Path(f"/proc/self/fd/{parent}/{name}")

    def check_usable(self) -> None:
        """Nothing may be here but an empty directory: what a mount hid, unpublish could not remove. Not for what is mounted.

        Raises InvalidRequest.
        """
        try:
            with self.parent() as (parent, name):
                try:
                    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
                except FileNotFoundError:
                    return
            try:
                inside = os.listdir(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise InvalidRequest(
                f"the target cannot be used: {error.strerror}",
                where=str(self.path),
                fix="its parent must exist, and no part of the path may be a file or a symbolic link; remove what is there",
            ) from error
        if inside:
            raise InvalidRequest(
                f"the target is not empty: it holds {min(inside)!r}", where=str(self.path), fix="remove what is there"
            )

    def make(self) -> None:
        """Makes the directory, whose parent must be there. Raises MountFailed."""
        try:
            with self.parent() as (parent, name), suppress(FileExistsError):
                os.mkdir(name, 0o750, dir_fd=parent)
        except OSError as error:
            raise MountFailed(
                f"cannot make the directory: {error.strerror}",
                where=str(self.path),
                fix="its parent must exist, and no part of it may be a file or a symbolic link",
            ) from error

    def remove(self) -> None:
        """Removes the directory, which must be empty and no mount; nothing where there is none.

        Raises MountFailed.
        """
        try:
            with self.parent() as (parent, name):
                os.rmdir(name, dir_fd=parent)
        except (FileNotFoundError, NotADirectoryError):
            # A file or a link in its place was not made by us, and is left alone.
            pass
        except OSError as error:
            raise MountFailed(
                f"cannot remove the directory: {error.strerror}", where=str(self.path), fix="see what is in it"
            ) from error


class TargetRules:
    """Which paths are targets, given kubelet's directory. Immutable, for any thread."""

    def __init__(self, kubelet_dir: Path) -> None:
        self.given = Path(os.path.normpath(kubelet_dir))
        self.root = Path(os.path.realpath(kubelet_dir))

    def parse(self, text: str) -> Target:
        """Raises InvalidRequest for anything but `<kubelet>/pods/<uid>/volumes/kubernetes.io~csi/<name>/mount` and
        `<kubelet>/plugins/kubernetes.io/csi/…`."""
        fix = (
            f"expected {self.given}/pods/<uid>/volumes/kubernetes.io~csi/<name>/mount; "
            "if kubelet's directory is another one, say so with --kubelet-dir"
        )
        shown = repr(text if len(text) <= 300 else text[:297] + "...")
        if len(text.encode(errors="surrogateescape")) > _MAX_PATH_BYTES:
            raise InvalidRequest("path is too long", where=shown, fix=fix)
        relative = self._below(text)
        if relative is None:
            raise InvalidRequest("path is outside kubelet's directory", where=shown, fix=fix)
        parts = relative.split("/")
        if (
            "" in parts
            or "." in parts
            or ".." in parts
            or not (_POD.fullmatch(relative) or _PLUGINS.fullmatch(relative))
        ):
            raise InvalidRequest("path is not one that kubelet publishes to", where=shown, fix=fix)
        return Target(self.root, relative)

    def _below(self, text: str) -> str | None:
        for root in (self.given, self.root):
            prefix = f"{root}/"
            if text.startswith(prefix):
                return text[len(prefix) :].rstrip("/")
        return None

    def is_target(self, path: Path) -> bool:
        try:
            self.parse(str(path))
        except InvalidRequest:
            return False
        return True
