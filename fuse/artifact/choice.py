"""Which manifest of an index is the model.

A model beats everything, whatever its platform says (modelcars list theirs as unknown/unknown); then comes this machine's
platform; then the only one there is. Attestations are no candidates. Pure but for `peek`, which reads a child's manifest.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Final

from fuse.artifact.formats import is_model_type
from fuse.artifact.manifest import INDEXES, MANIFESTS, Descriptor, Index, Manifest
from fuse.errors import NotAModel

MAX_DEPTH: Final = 3
"""Of indexes within indexes."""
MAX_PEEKS: Final = 8
_ATTESTATION: Final = "vnd.docker.reference.type"
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def node_architecture() -> str:
    """This machine's architecture, as Go and OCI call it."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def choose(index: Index, architecture: str, peek: Callable[[Descriptor], Manifest | Index]) -> Descriptor:
    """The child to go on with. Raises NotAModel when none stands out."""
    children = [
        child
        for child in index.manifests
        if child.media_type in MANIFESTS | INDEXES and _ATTESTATION not in child.annotations
    ]
    if len(children) == 1:
        return children[0]
    models = [child for child in children if is_model_type(child.artifact_type)]
    if not models:
        # Older tools do not repeat the artifactType in the index: the manifests tell.
        unsaid = [
            child for child in children if not child.artifact_type and _platform(child) in ("", "unknown/unknown")
        ]
        models = [child for child in unsaid[:MAX_PEEKS] if _is_model(peek(child))]
    ours = f"linux/{architecture}"
    matching = [child for child in models or children if _platform(child) == ours]
    if matching or models:
        return (matching or models)[0]
    offered = ", ".join(sorted({_platform(child) or child.artifact_type or "unnamed" for child in children})[:20])
    raise NotAModel(
        f"the index has no model and nothing for {ours}; it offers: {offered or 'nothing'}",
        where=f"index {index.digest}",
        fix="name one of its manifests by digest",
    )


def _platform(child: Descriptor) -> str:
    return f"{child.platform.os}/{child.platform.architecture}" if child.platform else ""


def _is_model(found: Manifest | Index) -> bool:
    if isinstance(found, Index):
        return is_model_type(found.artifact_type)
    return is_model_type(found.artifact_type) or is_model_type(found.config.media_type)
