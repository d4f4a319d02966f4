"""A file system of the kernel's own over blobs in the cache: an overlay that nothing makes writable, and that needs no process.

Names, modes, times and extended attributes are a tree in a tmpfs of its own; the contents stay where they are. The overlay
finds them by an attribute of each file (metacopy and a redirect into a data-only layer: Linux 6.5,
Documentation/filesystems/overlayfs.rst). It has no upper layer, so its superblock is read-only whatever flags somebody remounts
it with; a bind of the cache would be writable after `remount,bind,rw`. The tmpfs is taken out of the tree at once: only the
overlay has it then, and it goes with the overlay.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from fuse.errors import MountFailed
from fuse.filesystem import native
from fuse.filesystem.native import Section
from fuse.filesystem.table import ROOT, Node, Table
from fuse.filesystem.tree import Tree
from fuse.mounting import device

_METACOPY: Final = "trusted.overlay.metacopy"
_REDIRECT: Final = "trusted.overlay.redirect"
_FLAGS: Final = "metacopy=on,redirect_dir=follow,index=off,nfs_export=off,xino=off"
_PLACE: Final = re.compile(r"[a-z0-9]+/[A-Za-z0-9][A-Za-z0-9._-]*")
_COPY_BYTES: Final = 1024 * 1024
_SINCE: Final = (6, 5)


def kernel_can(release: str | None = None) -> bool:
    """Whether the kernel (of a uname(2) release, else the one that runs) knows data-only layers."""
    numbers = re.match(r"(\d+)\.(\d+)", os.uname().release if release is None else release)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= _SINCE


def mount(
    tree: Tree,
    names: Sequence[str],
    copies: Mapping[Section, str],
    blobs_dir: Path,
    mountpoint: Path,
    scratch: Path,
    label: str = "",
) -> None:
    """Shows `tree` at `mountpoint`.

    `names` are the places of its blobs below `blobs_dir`, as in "sha256/file"; each must be complete. `copies` are the places of
    those parts of them that are files of their own: the rest is copied into memory, and must not be much. `scratch` is an empty
    directory of the caller's. `label` is the SELinux context of all files, or empty; those of the cache keep theirs. Raises
    MountFailed, also where the kernel cannot (before 6.5, or when the cache lies on a file system that cannot be a layer);
    nothing is left mounted then.
    """
    _check(tree.table, names, copies)
    with ExitStack() as done:
        blobs = _opened(blobs_dir)
        done.callback(os.close, blobs)
        meta = done.enter_context(_tmpfs(scratch))
        try:
            _Builder(tree, names, copies, meta, blobs).build()
        except (OSError, OverflowError) as error:
            raise MountFailed(f"the tree cannot be made: {error}", where=str(mountpoint)) from error
        layers = f"lowerdir=/proc/self/fd/{meta}::/proc/self/fd/{blobs}"
        device.mount_file_system(device.OVERLAY, mountpoint, f"{_FLAGS},{layers}", label=label)


def _check(table: Table, names: Sequence[str], copies: Mapping[Section, str]) -> None:
    """Table and names come from processes without privileges, which parse what strangers wrote: no name may lead elsewhere."""
    places = (*names, *copies.values())
    if len(names) != len(table.blobs) or not all(_PLACE.fullmatch(place) for place in places):
        raise MountFailed("the places of the blobs are none in the cache", where=str(min(places, default="")))
    if native.inline_bytes(table, copies) > native.MAX_INLINE_BYTES:
        raise MountFailed("too much of it would have to be copied into memory")
    for node in table.nodes[1:]:
        if node.name in ("", ".", "..") or "/" in node.name or "\0" in node.name:
            raise MountFailed("a name in the tree is none", where=repr(node.name))


class _Builder:
    """Makes the tree below an empty directory. Nobody else can reach it, so names lead where they were made to."""

    def __init__(self, tree: Tree, names: Sequence[str], copies: Mapping[Section, str], meta: int, blobs: int) -> None:
        self._tree = tree
        self._table: Table = tree.table
        self._names = names
        self._copies = copies
        self._meta = meta
        self._blobs = blobs

    def build(self) -> None:
        directories: list[tuple[str, int]] = []
        for ino, node in enumerate(self._table.nodes, 1):
            path = self._path(ino)
            if node.kind == "d":
                if ino != ROOT:
                    os.mkdir(path, 0o700, dir_fd=self._meta)
                directories.append((path, ino))
            elif node.kind == "l":
                os.symlink(node.target, path, dir_fd=self._meta)
                self._finish(path, ino, None)
            else:
                self._file(path, ino, node)
        for path, ino in reversed(directories):  # a directory's time is that of its last change
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._meta)
            try:
                self._finish(path, ino, fd)
            finally:
                os.close(fd)

    def _file(self, path: str, ino: int, node: Node) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600, dir_fd=self._meta)
        try:
            place = self._place(node)
            if place is not None:
                os.ftruncate(fd, node.size)
                os.setxattr(fd, _METACOPY, b"")
                os.setxattr(fd, _REDIRECT, os.fsencode(f"/{place}"))
            elif node.size:
                self._copy(fd, node)
            self._finish(path, ino, fd)
        finally:
            os.close(fd)

    def _place(self, node: Node) -> str | None:
        """The file in the cache that has the content, from its first to its last byte."""
        if node.size and native.is_whole(self._table, node):
            return self._names[node.blob]
        return self._copies.get(native.section_of(node))

    def _copy(self, fd: int, node: Node) -> None:
        source = self._data(self._names[node.blob])
        try:
            at, end = node.offset, node.offset + node.size
            while at < end:
                content = os.pread(source, min(_COPY_BYTES, end - at), at)
                if not content:
                    raise OSError(errno.EIO, "a blob ends early")
                at += os.write(fd, content)
        finally:
            os.close(source)

    def _data(self, name: str) -> int:
        """A blob's file. Its owner, who runs without privileges, must not lead us anywhere else: no links are followed."""
        algorithm, _, file = name.partition("/")
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        directory = os.open(algorithm, flags | os.O_DIRECTORY, dir_fd=self._blobs)
        try:
            return os.open(file, flags, dir_fd=directory)
        finally:
            os.close(directory)

    def _finish(self, path: str, ino: int, fd: int | None) -> None:
        """Owner, mode, attributes and times, as the FUSE file system shows them."""
        shown = self._tree.attributes(ino)
        if fd is None:
            os.chown(path, shown.uid, shown.gid, dir_fd=self._meta, follow_symlinks=False)
            os.utime(path, ns=(shown.mtime_ns, shown.mtime_ns), dir_fd=self._meta, follow_symlinks=False)
            return
        os.fchown(fd, shown.uid, shown.gid)
        os.fchmod(fd, shown.mode & 0o7777)
        for name, value in self._tree.xattrs(ino).items():
            with suppress(OSError):  # tmpfs has user attributes since Linux 6.6
                os.setxattr(fd, name, value)
        os.utime(fd, ns=(shown.mtime_ns, shown.mtime_ns))

    def _path(self, ino: int) -> str:
        return self._tree.path(ino) or "."


@contextmanager
def _tmpfs(scratch: Path) -> Iterator[int]:
    """The root of a fresh tmpfs, which is out of the tree again at the end."""
    device.mount_file_system(device.TMPFS, scratch, "mode=0755", writable=True)
    try:
        fd = _opened(scratch)
        try:
            yield fd
        finally:
            os.close(fd)
    finally:
        device.unmount(scratch, lazy=True)


def _opened(directory: Path) -> int:
    try:
        return os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise MountFailed(f"cannot be opened: {error.strerror}", where=str(directory)) from error
