"""The offset map of an uncompressed tar: what is in it and where, from ranged reads of its headers alone.

Nothing is extracted and no name touches a disk. The bytes are hostile: every number is checked against the blob's size, every
loop is bounded. What tar would do decides the doubtful cases: of two members with one name the later counts, a hard link is the
file it names.

Reading is cheap in both ways in which models are packed. A tar of one large file costs its first read alone: where nothing but
the two blocks that end every archive fits behind a member, and they are not at hand, they are not asked for. A tar of many small
files is read in windows that double, so that it costs few requests. Runs in one thread, and blocks it for the reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Event
from typing import Final

from fuse.artifact.digest import Digest
from fuse.artifact.entries import MAX_ENTRIES, Member
from fuse.artifact.metadata import clamp_time
from fuse.artifact.naming import MAX_PATH_BYTES, clean_path
from fuse.artifact.seams import BlobReader
from fuse.artifact.tarheader import BLOCK, Header, is_zero, parse_header, parse_pax, pax_number, pax_time_ns
from fuse.errors import Cancelled, InvalidArtifact

MAX_EXTENSION_BYTES: Final = 1024 * 1024
"""Of one PAX header or GNU long name; Go's archive/tar has the same limit."""
MAX_HEADERS: Final = 4 * MAX_ENTRIES
MAX_PATHS_BYTES: Final = 32 * 1024 * 1024
"""Of all names and link targets together: bounds memory."""
FIRST_WINDOW: Final = 64 * 1024
MAX_WINDOW: Final = 4 * 1024 * 1024
_CACHE_BLOCK: Final = 1024 * 1024

_SPARSE: Final = "GNU.sparse."
_UNDERSTOOD: Final = frozenset({"path", "linkpath", "size", "mtime"})
"""Records of PAX headers; no others are kept, since global ones hold for all that follows and have no end."""
_FILE_TYPES: Final = (b"0", b"\0", b"7")
_NOT_FILES: Final = {
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a FIFO",
    b"S": "a sparse file of GNU tar",
    b"M": "a part of a file of another volume",
    b"D": "a directory of an incremental GNU archive",
}


class Window:
    """Reads a blob in pieces that suit both one header and thousands of them. Used by one thread."""

    def __init__(self, blobs: BlobReader, digest: Digest, size: int) -> None:
        self.size = size
        self._blobs = blobs
        self._digest = digest
        self._start = 0
        self._content = b""
        self._window = FIRST_WINDOW

    def holds(self, offset: int) -> bool:
        """Whether a header at `offset` is at hand."""
        return self._start <= offset and offset + BLOCK <= self._start + len(self._content)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes, which must lie within the blob."""
        end = self._start + len(self._content)
        if not self._start <= offset <= offset + length <= end:
            near = self._content and end - length <= offset <= end + self._window
            self._window = min(self._window * 2, MAX_WINDOW) if near else FIRST_WINDOW
            wanted = max(length, self._window)
            # Whole blocks are fetched behind this: do not touch one more for the sake of a guess.
            to_edge = -(offset + length) % _CACHE_BLOCK + length
            wanted = (
                min(wanted, to_edge + (wanted - to_edge) // _CACHE_BLOCK * _CACHE_BLOCK) if wanted > to_edge else wanted
            )
            wanted = min(wanted, self.size - offset)
            content = self._blobs.read(self._digest, self.size, offset, wanted)
            if len(content) != wanted:
                raise InvalidArtifact(
                    f"ends before the {self.size} bytes that its descriptor promises", where=f"layer {self._digest}"
                )
            self._start, self._content = offset, content
        at = offset - self._start
        return self._content[at : at + length]


@dataclass(slots=True)
class _Extensions:
    """What headers before a member said about it."""

    pax: dict[str, bytes]
    name: bytes | None = None
    link: bytes | None = None


def walk(window: Window, *, where: str, cancel: Event | None = None) -> tuple[Member, ...]:
    """The members in the archive's order, paths clean and unique. `where` names the layer in errors (InvalidArtifact)."""
    return _Walk(window, where, cancel).run()


class _Walk:
    def __init__(self, window: Window, where: str, cancel: Event | None) -> None:
        self._window = window
        self._where = where
        self._cancel = cancel
        self._members: dict[str, Member] = {}
        self._global_pax: dict[str, bytes] = {}
        self._paths_bytes = 0

    def run(self) -> tuple[Member, ...]:
        size = self._window.size
        extensions = _Extensions(dict(self._global_pax))
        extended = False
        offset = 0
        if size < BLOCK:
            raise self._invalid(f"{size} bytes are too few for a tar archive")
        for _ in range(MAX_HEADERS):
            if self._cancel is not None and self._cancel.is_set():
                raise Cancelled("reading the archive was given up", where=self._where)
            rest = size - offset
            # POSIX ends an archive with two blocks of zeros. Old writers left them out, so nothing at all is an end as well.
            if not extended and offset > 0 and (rest == 0 or (rest == 2 * BLOCK and not self._window.holds(offset))):
                return tuple(self._members.values())
            if rest < BLOCK:
                raise self._invalid(f"its header at offset {offset} is cut off")
            block = self._window.read(offset, BLOCK)
            if is_zero(block):
                if extended:
                    raise self._invalid(f"ends at offset {offset} where a member should follow")
                return tuple(self._members.values())
            header = self._parsed(block, offset)
            offset += BLOCK
            if header.type in (b"x", b"X", b"g", b"L", b"K"):
                self._extend(header, offset, extensions)
                extended = header.type != b"g" or extended
                if header.type == b"g" and not extended:
                    extensions = _Extensions(dict(self._global_pax))
                offset += _padded(header.size)
            else:
                offset += self._member(header, offset, extensions)
                extensions = _Extensions(dict(self._global_pax))
                extended = False
            if offset > size:
                raise self._invalid(f"a member is longer than the archive, which ends at {size}")
        raise self._invalid(f"more than {MAX_HEADERS} headers")

    def _parsed(self, block: bytes, offset: int) -> Header:
        try:
            return parse_header(block)
        except ValueError as error:
            raise self._invalid(f"bad header at offset {offset}: {error}") from None

    def _extend(self, header: Header, offset: int, extensions: _Extensions) -> None:
        if header.size > MAX_EXTENSION_BYTES or header.size > self._window.size - offset:
            raise self._invalid(f"an extended header of {header.size} bytes at offset {offset}")
        content = self._window.read(offset, header.size) if header.size else b""
        if header.type == b"L":
            extensions.name = content.partition(b"\0")[0]
        elif header.type == b"K":
            extensions.link = content.partition(b"\0")[0]
        else:
            try:
                records = parse_pax(content)
            except ValueError as error:
                raise self._invalid(f"bad header at offset {offset}: {error}") from None
            # A record without a value takes back one that was said globally (POSIX).
            into = self._global_pax if header.type == b"g" else extensions.pax
            for key, value in records.items():
                if key.startswith(_SPARSE):
                    into[_SPARSE] = b""
                elif key in _UNDERSTOOD and value:
                    into[key] = value
                elif key in _UNDERSTOOD:
                    into.pop(key, None)

    def _member(self, header: Header, offset: int, extensions: _Extensions) -> int:
        """Notes the member whose data would start at `offset`; answers how many bytes of data follow."""
        pax = extensions.pax
        try:
            size = pax_number(pax["size"]) if "size" in pax else header.size
            mtime_ns = pax_time_ns(pax["mtime"]) if "mtime" in pax else header.mtime_s * 1_000_000_000
        except ValueError as error:
            raise self._invalid(f"bad header at offset {offset - BLOCK}: {error}") from None
        name = self._decoded(pax.get("path") or extensions.name or header.name)
        link = self._decoded(pax.get("linkpath") or extensions.link or header.link)
        if _SPARSE in pax:
            raise self._refused(name, _NOT_FILES[b"S"])
        if header.type == b"V":
            return _padded(size)
        mode, mtime_ns = header.mode, clamp_time(mtime_ns)
        path = clean_path(name, where=self._where, allow_root=True)
        if header.type == b"5" or (header.type == b"\0" and name.endswith("/")):
            self._note(Member(path, "d", mode, mtime_ns))
            return 0
        if header.type in _FILE_TYPES:
            if size > self._window.size - offset:
                raise self._invalid(f"{name[:120]!a} is said to have {size} bytes, but the archive ends before")
            self._note(Member(path, "f", mode, mtime_ns, offset if size else 0, size))
            return _padded(size)
        # Links have no data, whatever their size says: some writers copy the size of the file that a hard link names.
        if header.type == b"1":
            target = self._members.get(clean_path(link, where=self._where, allow_root=True))
            if target is None or target.kind == "d":
                raise self._invalid(
                    f"{name[:120]!a} is a hard link to {link[:120]!a}, which is no file before it in the archive"
                )
            self._note(
                Member(path, target.kind, target.mode, target.mtime_ns, target.offset, target.size, target.target)
            )
            return 0
        if header.type == b"2":
            if not link or "\0" in link or len(link.encode()) >= MAX_PATH_BYTES:
                raise self._invalid(f"{name[:120]!a} is a symbolic link without a usable target")
            self._note(Member(path, "l", 0o777, mtime_ns, target=link))
            return 0
        raise self._refused(name, _NOT_FILES.get(header.type, f"of the unknown type {header.type!r}"))

    def _note(self, member: Member) -> None:
        if not member.path and member.kind != "d":
            raise self._invalid("a member without a name")
        earlier = self._members.pop(member.path, None)
        if earlier is not None and (earlier.kind == "d") != (member.kind == "d"):
            raise self._invalid(f"{member.path!a} is a directory and a file")
        self._members[member.path] = member
        self._paths_bytes += len(member.path) + len(member.target)
        if len(self._members) > MAX_ENTRIES:
            raise self._invalid(f"more than {MAX_ENTRIES} members")
        if self._paths_bytes > MAX_PATHS_BYTES:
            raise self._invalid(f"its names take more than {MAX_PATHS_BYTES} bytes")

    def _decoded(self, name: bytes) -> str:
        try:
            return name.decode()
        except UnicodeDecodeError:
            raise self._invalid(f"the name {name[:120]!r} is not UTF-8") from None

    def _refused(self, name: str, what: str) -> InvalidArtifact:
        return self._invalid(f"{name[:120]!a} is {what}; files, directories and links are what a model may hold")

    def _invalid(self, what: str) -> InvalidArtifact:
        return InvalidArtifact(f"not a usable tar: {what}", where=self._where, fix="pack and push this layer again")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
