"""Reading files of the cache for the fetcher's own ends, without changing what the page cache holds."""

from __future__ import annotations

import os


def read_quietly(fd: int, content: memoryview, offset: int) -> bool:
    """Fills `content`; False when the file ends early. Raises OSError.

    What had to be read from the disk for this is wanted by nobody else, so its pages are given up; what was there may be about to
    be served.
    """
    nowait = getattr(os, "RWF_NOWAIT", None)  # musl before 1.2.5 has no preadv2
    if nowait is not None:
        try:
            if os.preadv(fd, [content], offset, nowait) == len(content):
                return True
        except OSError:
            pass  # not there, or a file system that cannot promise not to wait
    whole = os.preadv(fd, [content], offset) == len(content)
    os.posix_fadvise(fd, offset, len(content), os.POSIX_FADV_DONTNEED)
    return whole
