"""From one layer to what it puts into the tree: a file, or the members of a tar.

A file's name is the first that is there of `org.cncf.model.filepath`, `org.cnai.model.filepath`,
`org.opencontainers.image.title` and, in ModelPack artifacts, `<kind>-<digest>`. Reads ranges of the layer where only its bytes
can tell; knows nothing of other layers. Layers may be read by several threads at once.
"""

from __future__ import annotations

import posixpath
from threading import Event
from typing import Final

from fuse.artifact import formats
from fuse.artifact.entries import Entry, Member
from fuse.artifact.formats import Family
from fuse.artifact.manifest import Descriptor
from fuse.artifact.metadata import of_file
from fuse.artifact.naming import clean_path
from fuse.artifact.offsets import OffsetMaps
from fuse.errors import Cancelled, InvalidArtifact, NotAModel

FILEPATHS: Final = ("org.cncf.model.filepath", "org.cnai.model.filepath")
TITLE: Final = "org.opencontainers.image.title"
UNPACK: Final = "io.deis.oras.content.unpack"
_OLOT: Final = "olot.layer.content."
_CARS_ROOT: Final = "models/"
_MAGIC_AT: Final = 257
_SNIFFED_BYTES: Final = 512
_COMPRESSIONS: Final = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"))
_COMPRESSED_NAMES: Final = (".gz", ".zst", ".zstd")
_COMPRESSED_TARS: Final = (".tar.gz", ".tar.zst", ".tar.zstd", ".tgz", ".tzst")


def entries(
    position: int, layer: Descriptor, family: Family, maps: OffsetMaps, cancel: Event | None = None
) -> list[Entry]:
    """What layer number `position` holds. Raises NotAModel, InvalidArtifact and Cancelled."""
    if layer.media_type == formats.EMPTY:
        return []
    packing = formats.packing(layer)
    unpack = layer.annotations.get(UNPACK) == "true"
    if packing == "raw" and not unpack:
        return [_file(position, layer, family)]
    if packing == "tar" and (known := maps.remembered(layer.digest, layer.size)) is not None:
        return _members(position, layer, known)
    if cancel is not None and cancel.is_set():
        raise Cancelled("reading the layer was given up", where=f"layer {layer.digest}")
    window = maps.window(layer.digest, layer.size)
    head = window.read(0, min(_SNIFFED_BYTES, layer.size)) if layer.size else b""
    compression = next((name for magic, name in _COMPRESSIONS if head.startswith(magic)), "")
    if compression:
        if packing == "tar?" and _is_compressed_file(layer, unpack=unpack):
            return [_file(position, layer, family)]
        raise formats.compressed(layer, compression)
    name = _filepath(layer) or layer.annotations.get(TITLE, "")
    if packing == "tar?" and name and not unpack:
        if head[_MAGIC_AT : _MAGIC_AT + 5] != b"ustar":
            return [_file(position, layer, family)]  # What ORAS calls any file.
        if family == "generic" and posixpath.splitext(name)[1] not in ("", ".tar"):
            # Formats like .nemo are tars by themselves, and their users want the file that they pushed. But a modelcar's layer is
            # a tar around the file that it is titled for.
            try:
                members = maps.computed(layer.digest, layer.size, window, cancel)
            except InvalidArtifact:
                members = ()
            return _members(position, layer, members) if _wraps(name, members) else [_file(position, layer, family)]
    return _members(position, layer, maps.computed(layer.digest, layer.size, window, cancel))


def _is_compressed_file(layer: Descriptor, *, unpack: bool) -> bool:
    """Whether a compressed layer is a file that says so in its name, such as `oras push vocab.json.gz` makes.

    AIKit's allfiles.tar.gz bears the same media type, and is meant to be unpacked.
    """
    name = (_filepath(layer) or layer.annotations.get(TITLE, "")).lower()
    return name.endswith(_COMPRESSED_NAMES) and not name.endswith(_COMPRESSED_TARS) and not unpack


def _wraps(name: str, members: tuple[Member, ...]) -> bool:
    files = [member.path for member in members if member.kind != "d"]
    return len(files) == 1 and posixpath.basename(files[0]) == posixpath.basename(name)


def _filepath(layer: Descriptor) -> str:
    return next((layer.annotations[key] for key in FILEPATHS if layer.annotations.get(key)), "")


def _file(position: int, layer: Descriptor, family: Family) -> Entry:
    name = _filepath(layer) or layer.annotations.get(TITLE, "")
    if not name:
        if family == "generic":
            raise NotAModel(
                f"a layer of media type {layer.media_type!r} without a file name",
                where=f"layer {layer.digest}",
                fix=f"layers of artifacts that are not ModelPack need the annotation {TITLE}",
            )
        name = f"{formats.kind_of(layer)}-{layer.digest.hex[:12]}"
    if layer.size == 0 and not layer.digest.matches(b""):
        raise InvalidArtifact(
            "its size is said to be 0, but its digest is not that of nothing", where=f"layer {layer.digest}"
        )
    mode, mtime_ns = of_file(layer)
    return Entry(
        path=clean_path(name, where=f"layer {layer.digest}", strip_parents=True),
        kind="f",
        layer=position,
        mode=mode,
        mtime_ns=mtime_ns,
        size=layer.size,
    )


def _members(position: int, layer: Descriptor, members: tuple[Member, ...]) -> list[Entry]:
    renamed = _renamed(layer, members)
    return [
        Entry(
            path=path,
            kind=member.kind,
            layer=position,
            mode=member.mode & 0o777 or None,
            mtime_ns=member.mtime_ns,
            offset=member.offset,
            size=member.size,
            target=member.target,
        )
        for member in members
        if (path := renamed.get(member.path, member.path))
    ]


def _renamed(layer: Descriptor, members: tuple[Member, ...]) -> dict[str, str]:
    """Members that appear elsewhere than the archive says; "" for a directory that does not appear at all."""
    only = [member.path for member in members if member.kind != "d"]
    named = _filepath(layer)
    if not named and any(key.startswith(_OLOT) for key in layer.annotations):
        # A modelcar keeps its files under models/, where container images want them.
        root = _CARS_ROOT.rstrip("/")
        return {member.path: member.path.removeprefix(_CARS_ROOT) for member in members if member.path != root} | {
            root: ""
        }
    if len(only) != 1:
        return {}
    titled = named or layer.annotations.get(TITLE, "")
    if not named and titled and only[0].startswith(_CARS_ROOT):
        path = only[0].removeprefix(_CARS_ROOT)
    elif titled and posixpath.basename(titled) == posixpath.basename(only[0]):
        # AIKit packs sub/dir/weights.bin from within its directory and tells the path in the annotation.
        path = clean_path(titled, where=f"layer {layer.digest}", strip_parents=True)
    else:
        return {}
    return {member.path: "" for member in members if f"{only[0]}/".startswith(f"{member.path}/")} | {only[0]: path}
