"""From what the layers hold to one inode table: collisions, implied directories, links, the view.

Deterministic: the same manifest, bytes, view and rules give the same table, byte for byte. Nodes are in the order of their paths
component by component, parents first. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from fuse.artifact.entries import MAX_ENTRIES, Entry
from fuse.artifact.manifest import Descriptor
from fuse.artifact.view import PATTERNS, Filter
from fuse.errors import InvalidArtifact, InvalidRequest
from fuse.filesystem.table import ROOT, Artifact, Blob, Node, Table, View

RULES: Final = 1
"""Raised when the same artifact comes to give another tree: tables are remembered by it."""
FILE_MODE: Final = 0o444
DIRECTORY_MODE: Final = 0o555
MAX_LINK_STEPS: Final = 1_000_000
"""Names that are looked up to follow all links of an artifact: far above any honest tree, a second or so of time."""
_MAX_HOPS: Final = 40  # the kernel's own limit on links in one lookup


def build(artifact: Artifact, layers: Sequence[Descriptor], entries: Iterable[Entry], *, mtime_ns: int) -> Table:
    """The table of one artifact. `mtime_ns` is for what does not tell its own.

    Raises InvalidArtifact for contradictions and excesses, InvalidRequest for a view that leaves nothing.
    """
    found = _merged(entries, layers)
    if not any(entry.kind == "f" for entry in found.values()):
        raise InvalidArtifact("the artifact holds no files", where=f"manifest {artifact.digest}")
    _check_links(found)
    shown = _shown(found, artifact.view)
    return _numbered(artifact, layers, shown, mtime_ns)


def _merged(entries: Iterable[Entry], layers: Sequence[Descriptor]) -> dict[str, Entry]:
    """By path, with all directories that are implied."""
    found: dict[str, Entry] = {}
    for entry in entries:
        _imply_directories(found, entry, layers)
        earlier = found.get(entry.path)
        if earlier is None or (earlier.kind == entry.kind == "d"):
            found[entry.path] = entry
        elif not _same(earlier, entry, layers):
            raise _collision(earlier, entry, layers)
        if len(found) > MAX_ENTRIES:
            raise InvalidArtifact(f"more than {MAX_ENTRIES} files and directories", fix="pack fewer, larger files")
    return found


def _imply_directories(found: dict[str, Entry], entry: Entry, layers: Sequence[Descriptor]) -> None:
    parent = entry.path.rpartition("/")[0]
    while parent:
        earlier = found.get(parent)
        if earlier is not None:
            if earlier.kind != "d":
                raise _collision(earlier, entry, layers)
            return
        found[parent] = Entry(path=parent, kind="d", layer=entry.layer)
        parent = parent.rpartition("/")[0]


def _same(one: Entry, other: Entry, layers: Sequence[Descriptor]) -> bool:
    """Whether two entries of one path are the same file or link: a tool named one layer twice."""
    if one.kind != other.kind:
        return False
    if one.kind == "l":
        return one.target == other.target
    same_bytes = layers[one.layer].digest == layers[other.layer].digest and one.offset == other.offset
    return one.size == other.size and (one.size == 0 or same_bytes)


def _collision(one: Entry, other: Entry, layers: Sequence[Descriptor]) -> InvalidArtifact:
    if one.path != other.path or "d" in (one.kind, other.kind):
        what = f"{one.path!a} is a file or link in one place and a directory in another"
    else:
        what = f"{one.path!a} is said twice, with different content"
    places = " and ".join(dict.fromkeys(f"layer {layers[entry.layer].digest}" for entry in (one, other)))
    return InvalidArtifact(what, where=places, fix="pack the artifact again without one of the two")


def _check_links(found: dict[str, Entry]) -> None:
    """Refuses links that lead out of the artifact."""
    steps = 0
    for link in found.values():
        if link.kind == "l":
            steps += _followed(link, found)
            if steps > MAX_LINK_STEPS:
                raise InvalidArtifact("following its symbolic links takes too long", where=repr(link.path))


def _followed(link: Entry, found: dict[str, Entry]) -> int:
    """Walks a link's target as the kernel would, for it may pass through other links; the number of steps that it took."""
    at = link.path.rpartition("/")[0]
    pending = _names(link)
    steps = hops = 0
    while pending:
        steps += 1
        name = pending.pop()
        if name in ("", "."):
            continue
        if name == "..":
            if not at:
                raise _escape(link)
            at = at.rpartition("/")[0]
            continue
        path = f"{at}/{name}" if at else name
        entry = found.get(path)
        if entry is not None and entry.kind == "d":
            at = path
        elif entry is not None and entry.kind == "l" and hops < _MAX_HOPS:
            hops += 1
            pending.extend(_names(entry))
        else:
            break  # A file, nothing, or a ring: if it fails, then when it is used; it leads nowhere else.
    return steps


def _names(link: Entry) -> list[str]:
    """The names of a link's target, the last first."""
    if link.target.startswith("/"):
        raise _escape(link)
    return link.target.split("/")[::-1]


def _escape(link: Entry) -> InvalidArtifact:
    return InvalidArtifact(
        f"the symbolic link {link.path!a} leads out of the artifact, to {link.target[:120]!a}",
        fix="pack the artifact again with relative links that stay inside, or with files",
    )


def _shown(found: dict[str, Entry], view: View) -> dict[str, Entry]:
    """What the view leaves. A directory goes when all that was in it went, or when it was empty and is named itself."""
    if not view.exclude and not view.exclude_weights:
        return found
    hidden = Filter(view)
    kept = {path for path, entry in found.items() if entry.kind != "d" and not hidden.hides(path)}
    if not any(found[path].kind == "f" for path in kept):
        raise InvalidRequest("they exclude every file of the artifact", where=PATTERNS, fix="exclude fewer files")
    filled = {entry.path.rpartition("/")[0] for entry in found.values()}
    kept.update(
        path
        for path, entry in found.items()
        if entry.kind == "d" and path not in filled and not hidden.hides(path, is_directory=True)
    )
    for path in tuple(kept):
        parent = path.rpartition("/")[0]
        while parent and parent not in kept:
            kept.add(parent)
            parent = parent.rpartition("/")[0]
    return {path: entry for path, entry in found.items() if path in kept}


def _numbered(artifact: Artifact, layers: Sequence[Descriptor], found: dict[str, Entry], mtime_ns: int) -> Table:
    used = {entry.layer for entry in found.values() if entry.kind == "f" and entry.size}
    # Two layers may be one blob; the order is the manifest's.
    indexes: dict[str, int] = {}
    blobs: list[Blob] = []
    for position in sorted(used):
        layer = layers[position]
        if str(layer.digest) not in indexes:
            indexes[str(layer.digest)] = len(blobs)
            blobs.append(Blob(str(layer.digest), layer.size, layer.media_type))
    nodes = [Node(ROOT, "", "d", DIRECTORY_MODE, mtime_ns)]
    inodes = {"": ROOT}
    path = ""
    for name in filter(None, artifact.directory.split("/")):
        nodes.append(Node(inodes[path], name, "d", DIRECTORY_MODE, mtime_ns))
        path = f"{path}/{name}" if path else name
        inodes = {path: len(nodes)}
    base = {"": inodes[path]}
    for entry in sorted(found.values(), key=lambda entry: entry.path.split("/")):
        parent, _, name = entry.path.rpartition("/")
        has_bytes = entry.kind == "f" and entry.size > 0
        default = FILE_MODE if entry.kind == "f" else DIRECTORY_MODE
        nodes.append(
            Node(
                parent=base[parent],
                name=name,
                kind=entry.kind,
                mode=((entry.mode or 0) & 0o555) or default,
                mtime_ns=mtime_ns if entry.mtime_ns is None else entry.mtime_ns,
                size=entry.size,
                blob=indexes[str(layers[entry.layer].digest)] if has_bytes else -1,
                offset=entry.offset if has_bytes else 0,
                target=entry.target,
            )
        )
        if entry.kind == "d":
            base[entry.path] = len(nodes)
    return Table(artifacts=(artifact,), blobs=tuple(blobs), nodes=tuple(nodes))
