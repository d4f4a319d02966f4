"""References that a claim completes: `registry.example.com/models/${pvc.annotations['example.com/model']}:v1`.

The words are those that external-provisioner knows for secrets: `${pvc.name}`, `${pvc.namespace}`, `${pvc.annotations['KEY']}`.
Who writes the StorageClass decides how much its claims may choose: what stands before the first word is out of their reach,
and that is nothing or at least the registry. Pure, but for the annotations, which are asked for if a word wants one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from fuse.errors import InvalidRequest

_WORD: Final = re.compile(r"\$\{([^{}]*)\}")
_ANNOTATION: Final = re.compile(r"pvc\.annotations\['([^']+)'\]")
_WHERE: Final = "StorageClass parameter reference"
_NAME: Final = "csi.storage.k8s.io/pvc/name"
_NAMESPACE: Final = "csi.storage.k8s.io/pvc/namespace"


@dataclass(frozen=True, slots=True)
class Claim:
    """The PersistentVolumeClaim that a volume is made for."""

    namespace: str
    name: str


Annotations = Callable[[Claim], Mapping[str, str]]


def claim_of(parameters: Mapping[str, str]) -> Claim | None:
    """What external-provisioner adds with --extra-create-metadata."""
    namespace, name = parameters.get(_NAMESPACE), parameters.get(_NAME)
    return Claim(namespace, name) if namespace and name else None


def expand(template: str, claim: Claim | None, annotations: Annotations) -> str:
    """The reference. Raises InvalidRequest, and what `annotations` raises."""
    first = _WORD.search(template)
    if first is None:
        return template
    if first.start() and "/" not in template[: first.start()]:
        raise InvalidRequest(
            "a claim would choose a part of the registry's name",
            where=_WHERE,
            fix="write the registry out up to its slash, or leave the whole reference to the claim",
        )
    if claim is None:
        raise InvalidRequest(
            "the claim's name is not told", where=_WHERE, fix="run external-provisioner with --extra-create-metadata"
        )
    return _WORD.sub(lambda word: _value(word[1], claim, annotations), template)


def _value(word: str, claim: Claim, annotations: Annotations) -> str:
    if word == "pvc.name":
        return claim.name
    if word == "pvc.namespace":
        return claim.namespace
    match = _ANNOTATION.fullmatch(word)
    if match is None:
        raise InvalidRequest(
            f"${{{word:.80}}} is not known",
            where=_WHERE,
            fix="known are ${pvc.name}, ${pvc.namespace} and ${pvc.annotations['KEY']}",
        )
    value = annotations(claim).get(match[1])
    if not value:
        raise InvalidRequest(
            f"the claim has no annotation {match[1]!r:.200}",
            where=f"PersistentVolumeClaim {claim.namespace}/{claim.name}",
            fix="add it to the claim: it names the model",
        )
    return value
