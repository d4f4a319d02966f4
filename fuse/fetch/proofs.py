"""Who was let in: what stands in for the registry's word while it cannot be reached, if the administrator allows that.

A proof says: with these very credentials (none at all counts as a set of its own) the registry gave leave to pull this manifest,
or answered this tag with that digest, at that time. It is an object whose name is a keyed hash of credentials, repository and
target; the key is the credentials, stretched by scrypt with a salt of this cache. So the disk holds no credential, and who
reads it cannot tell which ones were good except by trying each at the price of scrypt. Other credentials find nothing.
Thread-safe.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
import structlog

from fuse.artifact.digest import Digest
from fuse.cache.objects import ObjectStore
from fuse.errors import InvalidArtifact
from fuse.registry.access import Access

PROOFS: Final = "proofs"
_SALT_BYTES: Final = 32
_SCRYPT: Final = {"n": 2**14, "r": 8, "p": 1, "dklen": 32}
"""16 MiB and some 50 ms for each guess; for us once for each set of credentials."""
_MOST_KEYS: Final = 1024
_REFUSAL: Final = ""
"""A target that no reference has: when the credentials were last refused."""
_EARLY_S: Final = 60.0
"""A proof may seem to come from the future by so much: clocks are set."""

_log = structlog.get_logger(__name__)


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    digest: str
    proven_at: float
    """Unix time."""


class Proofs:
    """All proofs of a cache."""

    def __init__(self, objects: ObjectStore, directory: Path) -> None:
        """`directory`: where the salt is kept, readable for nobody else; without one, nothing is remembered."""
        self._objects = objects
        self._salt = _salt(directory)
        self._lock = threading.Lock()
        # Of credentials, by a hash that is worth nothing outside this process.
        self._secret = secrets.token_bytes(32)
        self._keys: OrderedDict[bytes, bytes] = OrderedDict()

    def of(self, access: Access, repository: str) -> Leave:
        """The proofs of one set of credentials at one repository. Nothing is remembered unless `access` allows it."""
        allowed = access.offline_s if self._salt is not None else 0.0
        return Leave(self._objects, self._key(access) if allowed > 0 else b"", repository, allowed)

    def _key(self, access: Access) -> bytes:
        # All hosts that may speak for the registry: whichever did, it was with these.
        shown = [
            (endpoint.url, endpoint.namespace, endpoint.credential, endpoint.client_certificates, endpoint.headers)
            for endpoint in access.endpoints
            if "resolve" in endpoint.capabilities
        ]
        content = msgspec.json.encode((access.registry, shown))
        name = hashlib.blake2b(content, key=self._secret).digest()
        with self._lock:
            known = self._keys.get(name)
            if known is not None:
                self._keys.move_to_end(name)
                return known
        key = hashlib.scrypt(content, salt=self._salt or b"", **_SCRYPT)
        with self._lock:
            self._keys[name] = key
            if len(self._keys) > _MOST_KEYS:
                self._keys.popitem(last=False)
        return key


class Leave:
    """What one set of credentials has been allowed at one repository. `target`: a tag, or the text of a digest."""

    def __init__(self, objects: ObjectStore, key: bytes, repository: str, most_s: float) -> None:
        self._objects = objects
        self._key = key
        self._repository = repository
        self._most_s = most_s

    def remember(self, target: str, digest: Digest) -> None:
        """The registry has just let these credentials pull `target`, which is `digest`."""
        if self._most_s > 0:
            proof = Proof(digest=str(digest), proven_at=time.time())
            self._objects.put(PROOFS, self._name(target), msgspec.json.encode(proof))

    def recall(self, target: str) -> Proof | None:
        """The proof for `target` if there is one, and it is not too old."""
        if self._most_s <= 0:
            return None
        proof, refusal = self._read(target), self._read(_REFUSAL)
        if proof is None or (refusal is not None and refusal.proven_at >= proof.proven_at):
            return None
        return proof if -_EARLY_S <= time.time() - proof.proven_at <= self._most_s else None

    def forget(self, target: str, *, all_targets: bool) -> None:
        """The registry has not got the target any more; or it refuses these credentials, whatever they ask for here."""
        if self._most_s <= 0:
            return
        self._objects.remove(PROOFS, self._name(target))
        if all_targets:
            refusal = Proof(digest="", proven_at=time.time())
            self._objects.put(PROOFS, self._name(_REFUSAL), msgspec.json.encode(refusal))

    def _read(self, target: str) -> Proof | None:
        content = self._objects.get(PROOFS, self._name(target))
        with suppress(msgspec.DecodeError, InvalidArtifact):
            proof = msgspec.json.decode(content or b"", type=Proof)
            if proof.digest:
                Digest.parse(proof.digest)
            return proof
        return None

    def _name(self, target: str) -> str:
        return hashlib.blake2b(f"{self._repository}\0{target}".encode(), key=self._key, digest_size=32).hexdigest()


def _salt(directory: Path) -> bytes | None:
    path = directory / "salt"
    try:
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(secrets.token_bytes(_SALT_BYTES))
                file.flush()
                os.fsync(fd)
        salt = path.read_bytes()
    except OSError as error:
        _log.warning("proofs_not_kept", error=str(error))
        return None
    if len(salt) == _SALT_BYTES:
        return salt
    # A power loss in the moment it was made: nothing was proven with it.
    with suppress(OSError):
        path.unlink()
    return None
