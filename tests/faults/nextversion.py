"""The next version of Weightless, as far as this one can know it: a copy of the packages with what a next version would change.

It calls itself otherwise, has one more optional field in every struct that is kept, or sent between processes that need not be of
one version, one more key in what the keeper is told, and orders files in another way: if it computed the inode numbers of a
mount anew instead of serving the table that the mount was made with, every open file would become another one. The copy is run by
the same interpreter, from PYTHONPATH.
"""

from __future__ import annotations

import ast
import shutil
from pathlib import Path
from typing import Final

VERSION: Final = "999.0.0"
ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("csi", "fuse", "weightless")
FIELD: Final = 'a_field_of_the_next_version: str = "said by the next version"'
STRUCTS: Final = {
    "csi/volumes.py": ("VolumeRecord",),
    "fuse/mounting/mount.py": ("Kept", "Use"),
    "fuse/spec.py": ("MountSpec", "Start", "Started", "Report"),
    "fuse/fetch/protocol.py": ("Hello", "Welcome", "Attach", "Grant", "Want", "Opened", "MountProgress"),
}
"""Not `Part`: the identity of a mount is a hash of it, so a new field there makes another mount, as it should."""


def make(directory: Path) -> Path:
    """Makes the copy in `directory`, which must not exist; returns it, for PYTHONPATH."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, directory / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, classes in STRUCTS.items():
        for found in classes:
            _add_field(directory / name, found)
    _replace(directory / "weightless/__init__.py", '__version__ = "', f'__version__ = "{VERSION}"\n_PREVIOUS = "')
    _replace(
        directory / "fuse/artifact/build.py",
        'key=lambda entry: entry.path.split("/")',
        # Parents first, as ever, but names backwards.
        'key=lambda entry: (entry.path.count("/"), [-ord(letter) for letter in entry.path])',
    )
    _replace(directory / "fuse/artifact/build.py", "RULES: Final = ", "RULES: Final = 1000 + ")
    _replace(
        directory / "fuse/mounting/keeper_client.py",
        '{"op": "keep", ',
        '{"op": "keep", "next": "said by the next version", ',
    )
    return directory


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, (
        f"{path.name} has changed: {text.count(old)} times {old!r}; tell this module how it is now"
    )
    path.write_text(text.replace(old, new))


def _add_field(path: Path, name: str) -> None:
    text = path.read_text()
    body = next(
        (node.body for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == name), None
    )
    assert body is not None, f"{path.name} has no class {name} any more; tell this module how it is now"
    # Behind the last field, or else behind the docstring.
    fields = [node for node in body if isinstance(node, ast.AnnAssign)]
    after = (fields or body)[-1 if fields else 0].end_lineno
    assert after is not None
    lines = text.splitlines()
    lines.insert(after, f"    {FIELD}")
    path.write_text("\n".join(lines) + "\n")
