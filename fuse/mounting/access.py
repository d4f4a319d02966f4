"""From a reference and what the administrator and the user configured to an `Access`: the one place on the privileged side that
reads credentials, keys and hosts.toml. The fetcher gets values, never paths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fuse.artifact.reference import Reference
from fuse.registry.access import Access, Credential
from fuse.registry.dockerconfig import DockerConfig, from_secrets
from fuse.registry.hosts import load_access


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessReader:
    """How registries are reached from this node. Files are read anew for each access: they change while a plugin runs."""

    certs_dir: Path | None = None
    """containerd's directory of hosts.toml files."""
    plain_http: bool = False
    docker_config: Path | None = None
    """The directory of config.json; None: $DOCKER_CONFIG, then ~/.docker."""
    local_allowed: bool = False
    """Whether loopback addresses may be reached: yes for a user's own command, no for a node plugin."""
    offline_s: float = 0.0
    """`Access.offline_s`: the administrator's policy for a registry that cannot be reached."""
    use_node_credentials: bool = True
    """Whether docker's config of this node counts where the secrets have nothing for a host."""

    def access(self, reference: str, secrets: Mapping[str, str] | None = None) -> Access:
        """Raises InvalidReference, InvalidRequest (secrets) or InvalidConfig (hosts.toml, config.json)."""
        registry = Reference.parse(reference).host
        found = load_access(
            registry,
            certs_dir=self.certs_dir,
            plain_http=self.plain_http,
            credential=self._credentials(registry, secrets),
            local_allowed=self.local_allowed,
        )
        return msgspec.structs.replace(found, offline_s=self.offline_s)

    def _credentials(self, registry: str, secrets: Mapping[str, str] | None) -> Callable[[str], Credential | None]:
        # A bare username and password are for the reference's own registry; a mirror of it must not see them.
        given = from_secrets(secrets, registry=registry) if secrets else _none
        node = DockerConfig.load(self.docker_config).credential if self.use_node_credentials else _none
        return lambda host: given(host) or node(host)


def _none(_host: str) -> Credential | None:
    return None
