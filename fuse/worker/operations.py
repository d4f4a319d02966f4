"""pyfuse3's handlers, for everything but READ (`fuse.worker.connection`). No decisions: decode, ask the tree, encode.

Handlers run as tasks of one trio thread. Whatever leaves a handler but FUSEError would end the whole session (and with it every
read that waits), so `guarded` stands before each. File handles are inode numbers and forgets are ignored: a successor that
knows nothing of this process's past can go on with them.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Coroutine
from typing import Any, Final, NoReturn, ParamSpec, TypeVar

import pyfuse3
import structlog
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, StatvfsData

from fuse.errors import WeightlessError
from fuse.filesystem.tree import Tree
from fuse.worker.errnos import errno_of
from fuse.worker.reader import Reader

VALID_S: Final = 86400.0
"""How long the kernel believes names and attributes. They never change; a day bounds what a bug here could do."""
IO_BYTES: Final = 128 * 1024
"""st_blksize: libraries read so much at once, also where a few bytes of a header are wanted."""
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
_log = structlog.get_logger()


def guarded(
    handler: Callable[Parameters, Coroutine[Any, Any, Result]],
) -> Callable[Parameters, Coroutine[Any, Any, Result]]:
    """Only FUSEError gets out: known faults by the table, the rest (a bug) as EIO with its traceback in the log."""

    @functools.wraps(handler)
    async def guard(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        try:
            return await handler(*arguments, **named)
        except FUSEError:
            raise
        except WeightlessError as error:
            _log.error("request_failed", request=handler.__name__, kind=error.kind, error=error)
            raise FUSEError(errno_of(error)) from error
        except Exception as error:
            _log.exception("request_crashed", request=handler.__name__)
            raise FUSEError(errno.EIO) from error

    return guard


async def _refuse(*_: Any) -> NoReturn:
    raise FUSEError(errno.EROFS)


# One handler of any signature.
_read_only: Any = _refuse


class TreeOperations(pyfuse3.Operations):
    """One mount. What is not here (flush, fsync, access, poll) is ENOSYS, after which the kernel answers it by itself."""

    supports_dot_lookup = True

    def __init__(self, tree: Tree, reader: Reader) -> None:
        super().__init__()
        self._tree = tree
        self._reader = reader
        self.open_files = 0

    @guarded
    async def lookup(self, parent_inode: int, name: bytes, _ctx: RequestContext | None = None) -> EntryAttributes:
        ino = self._tree.lookup(parent_inode, name)
        if ino is None:
            # Inode 0: the kernel remembers that there is none. Loaders probe for many optional files.
            entry = EntryAttributes()
            entry.st_ino = 0
            entry.entry_timeout = VALID_S
            return entry
        return self._entry(ino)

    @guarded
    async def getattr(self, inode: int, _ctx: RequestContext | None = None) -> EntryAttributes:
        return self._entry(inode)

    @guarded
    async def readlink(self, inode: int, _ctx: RequestContext) -> bytes:
        return self._tree.target(inode)

    @guarded
    async def opendir(self, inode: int, _ctx: RequestContext) -> int:
        return inode

    @guarded
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        for cookie, name, ino in self._tree.children(fh, start_id):
            if not pyfuse3.readdir_reply(token, name, self._entry(ino), cookie):
                return

    @guarded
    async def releasedir(self, _fh: int) -> None:
        return None

    @guarded
    async def open(self, inode: int, flags: int, _ctx: RequestContext) -> FileInfo:
        if flags & _WRITING:
            raise FUSEError(errno.EROFS)
        self._reader.prepare(inode)
        self.open_files += 1
        return FileInfo(fh=inode, keep_cache=True)

    @guarded
    async def release(self, _fh: int) -> None:
        # Files that a predecessor opened are closed here too.
        self.open_files = max(0, self.open_files - 1)

    async def forget(self, inode_list: object) -> None:
        """Nothing is counted, so nothing is forgotten: the tree lives as long as the mount."""

    @guarded
    async def statfs(self, _ctx: RequestContext) -> StatvfsData:
        found = StatvfsData()
        found.f_bsize = found.f_frsize = 4096
        found.f_blocks = -(-self._tree.total_bytes // 4096)
        found.f_files = len(self._tree)
        found.f_namemax = 255
        return found

    @guarded
    async def getxattr(self, inode: int, name: bytes, _ctx: RequestContext) -> bytes:
        value = self._tree.xattrs(inode).get(name.decode(errors="replace"))
        if value is None:
            raise FUSEError(pyfuse3.ENOATTR)
        return value

    @guarded
    async def listxattr(self, inode: int, _ctx: RequestContext) -> list[bytes]:
        return [name.encode() for name in self._tree.xattrs(inode)]

    # The mount is read-only, so the kernel refuses these before they come here; but whoever mounts us otherwise gets the same.
    setattr = mknod = mkdir = unlink = rmdir = symlink = rename = link = _read_only
    create = write = setxattr = removexattr = _read_only

    def _entry(self, ino: int) -> EntryAttributes:
        found = self._tree.attributes(ino)
        entry = EntryAttributes()
        entry.st_ino = ino
        entry.entry_timeout = entry.attr_timeout = VALID_S
        entry.st_mode = found.mode
        entry.st_nlink = found.nlink
        entry.st_uid = found.uid
        entry.st_gid = found.gid
        entry.st_size = found.size
        entry.st_blksize = IO_BYTES
        entry.st_blocks = found.blocks
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = found.mtime_ns
        return entry
