"""Who is who in a cluster: a certification authority, a certificate for each component, and kubeconfig files that name them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True, slots=True)
class Identity:
    certificate: Path
    key: Path


class Credentials:
    """Files in one directory. `server` is the address that kubeconfig files name."""

    def __init__(self, directory: Path, *, server: str) -> None:
        directory.mkdir(mode=0o700)
        self._directory = directory
        self._server = server
        self._authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self.ca = directory / "ca.crt"
        self._authority.cert_pem.write_to_path(str(self.ca))

    def identity(self, name: str, *, groups: str = "system:masters", hosts: tuple[str, ...] = ()) -> Identity:
        """A certificate of the user `name`; it serves the `hosts` as well."""
        issued = self._authority.issue_cert(
            *(hosts or ("client.invalid",)), common_name=name, organization_name=groups, key_type=trustme.KeyType.ECDSA
        )
        stem = name.replace(":", "-")
        identity = Identity(self._directory / f"{stem}.crt", self._directory / f"{stem}.key")
        identity.certificate.write_bytes(issued.cert_chain_pems[0].bytes())
        identity.key.touch(mode=0o600)
        identity.key.write_bytes(issued.private_key_pem.bytes())
        return identity

    def kubeconfig(self, name: str, *, groups: str = "system:masters") -> Path:
        """How the user `name` finds the API server and proves who it is."""
        identity = self.identity(name, groups=groups)
        cluster = {"server": self._server, "certificate-authority": str(self.ca)}
        user = {"client-certificate": str(identity.certificate), "client-key": str(identity.key)}
        path = identity.key.with_suffix(".kubeconfig")
        # JSON is YAML.
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "test", "cluster": cluster}],
                    "users": [{"name": name, "user": user}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
                    "current-context": "test",
                }
            )
        )
        return path
