"""The registries of a cluster that is made here: an open one without TLS, a private one with it, and a mirror.

All of them have one model, a stranger's push. The private one takes a user with a password, and pods of one ServiceAccount: a
credential provider on the node hands their token to the registry's token service, which asks the API server whose it is.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.cluster.kubernetes import Kubernetes
from tests.cluster.machine import NODE_ADDRESS
from tests.cluster.settings import NAMESPACE
from tests.support.dockerregistry import Certificates, DockerRegistry, TokenService
from tests.support.models import copy_with_skopeo, push_with_oras

REPOSITORY: Final = "models/small"
ACCOUNT: Final = "reader"
ANNOTATION: Final = "registry.test/pulls"
"""Of ServiceAccounts that the provider is asked for; the registry decides what they may."""
AUDIENCE: Final = "registry.test"
PROVIDER_CONFIG: Final = Path("/etc/kubernetes/credential-providers.yaml")
PROVIDERS: Final = Path("/opt/credential-providers")

_SIZES_BYTES: Final = {
    "config.json": 700,
    "model-00001-of-00002.safetensors": 48 << 20,
    "model-00002-of-00002.safetensors": 17 << 20,
}
_BY_TOKEN: Final = "service-account"
# It runs in the plugin's container, whose image has a Python.
_PROVIDER: Final = f"""\
#!/usr/bin/python3 -SI
import json, sys
request = json.load(sys.stdin)
host = request["image"].partition("/")[0]
auth = {{host: {{"username": "{_BY_TOKEN}", "password": request["serviceAccountToken"]}}}}
print(json.dumps({{"kind": "CredentialProviderResponse", "apiVersion": request["apiVersion"],
    "cacheKeyType": "Registry", "cacheDuration": "5m", "auth": auth}}))
"""


@dataclass(frozen=True, slots=True)
class Registries:
    open: DockerRegistry
    private: DockerRegistry
    mirror: DockerRegistry
    """Of the open one's content, on the node's loopback."""
    sums: str

    def image(self, name: str) -> str:
        """Where `keep_images` puts an image, without its tag."""
        return f"{self.private.host}/images/{name}"

    def keep_images(self, archives: Mapping[str, Path]) -> None:
        """Puts OCI archives into the private registry, by the last part of their images' names."""
        for name, path in archives.items():
            target = f"docker://{self.image(name.rpartition('/')[2])}"
            options = ["--quiet", "--preserve-digests", *self.private.skopeo_options("dest")]
            subprocess.run(["skopeo", "copy", *options, f"oci-archive:{path}", target], check=True)

    def mirrored(self) -> int:
        """How many blobs the mirror has been asked for."""
        return (self.mirror.directory / "log").read_text().count(f"GET /v2/{REPOSITORY}/blobs/")


@contextmanager
def registries(directory: Path, api: Kubernetes) -> Iterator[Registries]:
    """`api` tells the token service whose a token is."""
    certificates = Certificates.create(directory / "certificates", NODE_ADDRESS)
    with ExitStack() as stack:
        tokens = stack.enter_context(_Tokens(certificates, api))
        anybodys = stack.enter_context(DockerRegistry(directory / "open", address=NODE_ADDRESS))
        private = DockerRegistry(directory / "private", address=NODE_ADDRESS, certificates=certificates, tokens=tokens)
        stack.enter_context(private)
        mirror = DockerRegistry(directory / "mirror", storage=anybodys.storage, access_log=True)
        stack.enter_context(mirror)
        sums = _push_model(anybodys, directory)
        copy_with_skopeo(anybodys, private, REPOSITORY)
        _write_provider(private.host)
        yield Registries(anybodys, private, mirror, sums)


class _Tokens(TokenService):
    """Knows ServiceAccounts by the tokens of their pods, beside the user."""

    def __init__(self, certificates: Certificates, api: Kubernetes) -> None:
        super().__init__(certificates, address=NODE_ADDRESS)
        self._api = api

    def granted(self, user: str, password: str, scopes: list[str]) -> list[str] | None:
        if user != _BY_TOKEN:
            return super().granted(user, password, scopes)
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": password, "audiences": [AUDIENCE]},
        }
        answer = self._api.run("create", "-o", "json", "-f", "-", given=json.dumps(review))
        status = json.loads(answer)["status"]
        if not status.get("authenticated"):
            return None
        return scopes if status["user"]["username"] == f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}" else []


def _write_provider(host: str) -> None:
    """A credential provider on the node, and the configuration that kubelet would have for it."""
    PROVIDERS.mkdir()
    program = PROVIDERS / "exchange"
    program.write_text(_PROVIDER)
    program.chmod(0o755)
    provider = {
        "name": program.name,
        "matchImages": [host],
        "defaultCacheDuration": "5m",
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "tokenAttributes": {
            "serviceAccountTokenAudience": AUDIENCE,
            "requireServiceAccount": True,
            # Others are asked for a secret.
            "requiredServiceAccountAnnotationKeys": [ANNOTATION],
            "cacheType": "ServiceAccount",
        },
    }
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1",
        "kind": "CredentialProviderConfig",
        "providers": [provider],
    }
    PROVIDER_CONFIG.parent.mkdir(exist_ok=True)
    PROVIDER_CONFIG.write_text(json.dumps(config))


def _push_model(registry: DockerRegistry, scratch: Path) -> str:
    """Puts a model into the registry, as a stranger's tool does; its sums."""
    directory = scratch / "model"
    directory.mkdir()
    chance = random.Random(5)
    sums = []
    for name, size in _SIZES_BYTES.items():
        content = chance.randbytes(size)
        (directory / name).write_bytes(content)
        sums.append(f"{hashlib.sha256(content).hexdigest()}  ./{name}\n")
    push_with_oras(directory, registry, REPOSITORY, scratch)
    return "".join(sums)
