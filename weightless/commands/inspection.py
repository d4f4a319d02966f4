"""`weightless inspect`: what a model consists of. Asks for the manifest and for headers of archives,
never for whole files.
"""

from __future__ import annotations

import contextlib
import stat

import msgspec

from fuse.artifact.formats import laziness
from fuse.filesystem.table import Table, decode
from fuse.filesystem.tree import Tree
from weightless import console, units, wiring
from weightless.options import Settings


class InspectedFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One file, directory or link, for `--json`."""

    path: str
    kind: str
    mode: str
    size: int
    media_type: str = ""
    digest: str = ""
    """Of the blob that holds the file, which may hold others."""
    offset: int = 0
    lazy: str = ""
    target: str = ""


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    reference: str
    digest: str
    media_type: str
    bytes_total: int
    files: tuple[InspectedFile, ...]


def run(settings: Settings, reference: str, *, exclude: tuple[str, ...], exclude_weights: bool, json: bool) -> None:
    wiring.check_reference(reference)
    run_dir = wiring.begin(settings)
    access = wiring.access_reader(settings).access(reference)
    with contextlib.closing(wiring.fetcher(settings, run_dir)) as client:
        resolved, content = client.resolve(reference, access, wiring.view(exclude, exclude_weights=exclude_weights))
    table = decode(content)
    inspection = Inspection(
        reference=resolved.reference,
        digest=resolved.digest,
        media_type=resolved.media_type,
        bytes_total=resolved.bytes_total,
        files=tuple(_files(table)),
    )
    if json:
        console.say(msgspec.json.format(msgspec.json.encode(inspection)).decode())
    else:
        _show(inspection, blobs=len(table.blobs))


def _files(table: Table) -> list[InspectedFile]:
    tree = Tree(table)
    shown = [ino for ino in range(1, len(tree) + 1) if tree.node(ino).kind != "d"]
    return sorted((_file(tree, ino) for ino in shown), key=lambda file: file.path)


def _file(tree: Tree, ino: int) -> InspectedFile:
    node, attributes, path = tree.node(ino), tree.attributes(ino), tree.path(ino)
    mode = stat.filemode(attributes.mode)
    if node.kind == "l":
        return InspectedFile(path=path, kind="link", mode=mode, size=attributes.size, target=node.target)
    if node.blob < 0:
        return InspectedFile(path=path, kind="file", mode=mode, size=0, lazy="empty")
    blob = tree.blob(node.blob)
    return InspectedFile(
        path=path,
        kind="file",
        mode=mode,
        size=node.size,
        media_type=blob.media_type,
        digest=blob.digest,
        offset=node.offset,
        lazy=laziness(blob.media_type, offset=node.offset),
    )


def _show(inspection: Inspection, *, blobs: int) -> None:
    console.say(f"reference   {console.one_line(inspection.reference)}")
    console.say(f"digest      {inspection.digest}")
    console.say(f"media type  {console.one_line(inspection.media_type)}")
    console.say(f"size        {units.size(inspection.bytes_total)} in {len(inspection.files)} files, {blobs} blobs")
    console.say("")
    drawn = console.table(
        "file", "size", "mode", "readable", "digest", "media type", right=("size",), whole=("mode", "digest")
    )
    for file in inspection.files:
        drawn.add_row(
            # Names that somebody else chose: never markup, never control characters.
            console.plain(f"{file.path} -> {file.target}" if file.target else file.path),
            units.size(file.size),
            file.mode,
            file.lazy,
            console.plain(file.digest[: len("sha256:") + 12]),
            console.plain(file.media_type),
        )
    console.show(drawn)
