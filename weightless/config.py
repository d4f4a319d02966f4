"""weightless.toml: the options that a person does not want to repeat.

```toml
cache-dir = "/var/lib/weightless/cache"
certs-dir = "/etc/containerd/certs.d"   # hosts.toml directories, as containerd reads them
plain-http = false
prefetch = "full"                       # or "none"
verify = "lazy"                         # or "strict"
log-level = "info"

[cache]
quota = "500GB"         # what the cache may hold; without it, what the disk has
free-space = 0.15       # the share of the disk that stays free
native-copies = "auto"  # or "off": copy no large members of tars into the cache, which native mounts need
[fetch]
connections = 8         # to one registry, at once
max-bandwidth = "1GB"   # a second, from all registries; without it, what the link carries
[fetch.registry."registry.example.com"]   # what is different for one of them
connections = 4
max-bandwidth = "200MB"
[registry]
offline = "refuse"      # or "allow": mount what the same credentials mounted before while the registry cannot be reached
offline-hours = 72      # how old that proof may be
allowed = ["registry.example.com/models", "*.example.com"]   # what may be mounted; without it, everything
[credentials]           # of pods: whose count, and where they are (docs/credentials.md)
allow = ["pod-identity", "publish-secret", "driver-secret", "node-identity", "anonymous"]
docker-config = "/etc/weightless/docker"                # config.json, or a mounted secret: counts for every pod
provider-config = "/etc/kubernetes/credential-providers.yaml"   # kubelet's --image-credential-provider-config
provider-bin-dir = "/usr/libexec/kubernetes/credential-providers"  # and its --image-credential-provider-bin-dir
provider-user = 65532   # whom providers run as
[node]                  # of `weightless csi --mode node`, and all
endpoint = "unix:///var/lib/kubelet/plugins/csi.weightless.dev/csi.sock"
node-id = "worker-1"
kubelet-dir = "/var/lib/kubelet"
state-dir = "/var/lib/weightless"
metrics-address = ":9808"   # Prometheus metrics, at /metrics; without it there are none
keeper = "unix:///run/weightless-keeper/keeper.sock"   # one that runs by itself; without it, the plugin starts its own
max-volumes = 0             # how many volumes the scheduler may give this node; 0: no limit
[controller]            # of `weightless csi --mode controller`
endpoint = "unix:///csi/csi.sock"
metrics-address = ":9808"
[kubernetes]
events = "auto"         # or "off": tell the owners of pods what became of their models, where there is an API server
service-account-annotations = false   # of pods, for credential providers that want some
remove-taint = ""       # a taint that the node loses once kubelet knows the driver, such as "csi.weightless.dev/agent-not-ready"
[mount]
without-resend = "wait"    # or "abort": on kernels before 6.9
native = "auto"            # or "off": serve also what is whole in the cache by FUSE
selinux-context = "system_u:object_r:container_file_t:s0"   # of mounted files, where SELinux is on; without it, the policy's
```

An option of the command line goes before the file, the file before the default. A key that is not known is an error: a
misspelt limit that is silently ignored is worse than a refusal. Pure but for the reading of the file.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import msgspec

from fuse.artifact.reference import Reference
from fuse.credentials.given import PROVIDER_USER, RUNGS, Rung
from fuse.errors import InvalidConfig, InvalidReference, InvalidRequest
from fuse.fetch.limits import LEAST_BYTES_PER_S, RegistryLimits
from fuse.mounting import selinux
from fuse.spec import Native, Prefetch, Verify, WithoutResend
from weightless.units import parse_size, size

LogLevel = Literal["debug", "info", "warning", "error"]
_BANDWIDTH: Final = f'bytes a second, at least {size(LEAST_BYTES_PER_S)}: a number, or text such as "200MB"'
_CHOICES: Final = {
    "prefetch": f"one of {', '.join(get_args(Prefetch))}",
    "verify": f"one of {', '.join(get_args(Verify))}",
    "log-level": f"one of {', '.join(get_args(LogLevel))}",
    "native": f"one of {', '.join(get_args(Native))}",
    "native-copies": f"one of {', '.join(get_args(Native))}",
    "without-resend": f"one of {', '.join(get_args(WithoutResend))}",
    "free-space": "a share of the disk from 0 to below 1, such as 0.15",
    "connections": "a whole number from 1 to 256",
    "quota": 'a number of bytes, or text such as "500GB"',
    "plain-http": "true or false",
    "max-bandwidth": _BANDWIDTH,
    "offline": "one of refuse, allow",
    "allow": f"a list of {', '.join(RUNGS)}",
    "provider-user": "the number of a user; 0 is root",
    "allowed": 'a list of patterns, as in ["registry.example.com/models", "*.example.com"]',
    "offline-hours": "a number of hours above 0, up to 8760",
    "max-volumes": "a whole number; 0 means no limit",
    **dict.fromkeys(
        ("cache", "fetch", "registry", "credentials", "node", "controller", "kubernetes", "mount"),
        "a table, as in [cache]",
    ),
    "events": "one of auto, off",
}
_ELSE: Final = "text in quotes"
_TAINT: Final = re.compile(
    r"(?:[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)
ENVIRONMENT: Final = "WEIGHTLESS_CONFIG"


class _Section(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    pass


class CacheSection(_Section, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    quota: str | int | None = None
    free_space: Annotated[float, msgspec.Meta(ge=0, lt=1)] | None = None
    native_copies: Native | None = None


class TrafficSection(_Section, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    connections: Annotated[int, msgspec.Meta(ge=1, le=256)] | None = None
    max_bandwidth: str | int | None = None

    @property
    def bytes_per_s(self) -> int:
        """0: no limit. Raises InvalidRequest."""
        if self.max_bandwidth is None:
            return 0
        limit = parse_size(str(self.max_bandwidth).removesuffix("/s"))
        if limit < LEAST_BYTES_PER_S:
            raise InvalidRequest(f"{self.max_bandwidth!r:.40} is too little to read by", fix=f"use {_BANDWIDTH}")
        return limit


class FetchSection(TrafficSection, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """`connections` are to any one registry, `max_bandwidth` is of all."""

    registry: dict[str, TrafficSection] = {}
    """By host, as references have it."""

    @property
    def registries(self) -> dict[str, RegistryLimits]:
        """Raises InvalidRequest for what is no limit, or no registry's host."""
        found = {}
        for host, section in self.registry.items():
            with _within(f'registry."{host}"'):
                _check_host(host)
                with _within("max-bandwidth"):
                    found[host] = RegistryLimits(connections=section.connections, bytes_per_s=section.bytes_per_s)
        return found


class RegistrySection(_Section, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    offline: Literal["refuse", "allow"] = "refuse"
    offline_hours: Annotated[float, msgspec.Meta(gt=0, le=8760)] = 72.0
    allowed: tuple[str, ...] | None = None
    """Patterns as kubelet's matchImages; None: everything. An empty list allows nothing."""

    @property
    def offline_s(self) -> float:
        """How old a proof may be that stands in for a registry which cannot be reached; 0: none may."""
        return self.offline_hours * 3600 if self.offline == "allow" else 0.0


class CredentialsSection(_Section, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    allow: tuple[Rung, ...] = RUNGS
    docker_config: str | None = None
    provider_config: str | None = None
    provider_bin_dir: str | None = None
    provider_user: Annotated[int, msgspec.Meta(ge=0, lt=2**32 - 1)] = PROVIDER_USER

    def check(self) -> None:
        """Raises InvalidRequest for what makes no sense together."""
        if not self.allow:
            raise InvalidRequest("nothing is allowed", where="allow", fix=f"use some of {', '.join(RUNGS)}")
        if (self.provider_config is None) != (self.provider_bin_dir is None):
            raise InvalidRequest(
                "provider-config and provider-bin-dir go together", fix="give both, as kubelet's two flags, or none"
            )


class NodeSection(_Section, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    endpoint: str | None = None
    node_id: str | None = None
    kubelet_dir: str | None = None
    state_dir: str | None = None
    metrics_address: str | None = None
    keeper: str | None = None
    max_volumes: Annotated[int, msgspec.Meta(ge=0)] = 0


class ControllerSection(_Section, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    endpoint: str | None = None
    metrics_address: str | None = None


class KubernetesSection(_Section, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    events: Literal["auto", "off"] = "auto"
    remove_taint: str = ""
    service_account_annotations: bool = False


class MountSection(_Section, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    without_resend: WithoutResend | None = None
    native: Native | None = None
    selinux_context: str | None = None


class Config(_Section, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """The file as it is written; None and empty sections are what it does not say."""

    cache_dir: str | None = None
    certs_dir: str | None = None
    plain_http: bool | None = None
    prefetch: Prefetch | None = None
    verify: Verify | None = None
    log_level: LogLevel | None = None
    cache: CacheSection = CacheSection()
    fetch: FetchSection = FetchSection()
    registry: RegistrySection = RegistrySection()
    credentials: CredentialsSection = CredentialsSection()
    node: NodeSection = NodeSection()
    controller: ControllerSection = ControllerSection()
    kubernetes: KubernetesSection = KubernetesSection()
    mount: MountSection = MountSection()

    @property
    def quota_bytes(self) -> int | None:
        quota = self.cache.quota
        return None if quota is None else parse_size(str(quota))

    def check(self) -> None:
        """Raises InvalidRequest, with the key, for what has the right type and says nothing."""
        for pattern in self.registry.allowed or ():
            with _within("registry.allowed"):
                _check_pattern(pattern)
        with _within("cache.quota"):
            _ = self.quota_bytes
        with _within("credentials"):
            self.credentials.check()
        with _within("kubernetes.remove-taint"):
            _check_taint(self.kubernetes.remove_taint)
        with _within("mount.selinux-context"):
            if self.mount.selinux_context:
                selinux.parse(self.mount.selinux_context)
        with _within("fetch"):
            _ = self.fetch.registries
            with _within("max-bandwidth"):
                _ = self.fetch.bytes_per_s


def load(path: Path | None) -> Config:
    """The file at `path`, or at the default places; without any, what a silent file says. Raises InvalidConfig."""
    if path is None:
        path = default_path()
        if path is None:
            return Config()
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        fix = "correct --config (or $WEIGHTLESS_CONFIG), or let this user read the file"
        raise InvalidConfig(f"cannot be read: {error.strerror}", where=str(path), fix=fix) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        fix = "mend the file; docs/CONFIGURATION.md has an example"
        raise InvalidConfig(f"is not TOML: {error}", where=str(path), fix=fix) from error
    _refuse_unknown(content, Config, str(path), "")
    try:
        config = msgspec.convert(content, Config)
        config.check()
    except msgspec.ValidationError as error:
        what = str(error)[:1].lower() + str(error)[1:].replace("`$.", "`")
        key = what.rpartition("`")[0].rpartition("`")[2].partition("[")[0].rpartition(".")[2]
        raise InvalidConfig(what, where=str(path), fix=f"use {_CHOICES.get(key, _ELSE)}") from error
    except InvalidRequest as error:
        raise InvalidConfig(f"{error.where}: {error.what}", where=str(path), fix=error.fix) from error
    return config


def default_path() -> Path | None:
    """$WEIGHTLESS_CONFIG whether it exists or not, else root's or the user's file if there is one."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        return Path(named)
    if os.geteuid() == 0:
        path = Path("/etc/weightless/weightless.toml")
    else:
        home = os.environ.get("XDG_CONFIG_HOME") or str(Path("~/.config").expanduser())
        path = Path(home) / "weightless" / "weightless.toml"
    return path if path.exists() else None


def _refuse_unknown(content: dict[str, Any], kind: type[msgspec.Struct], where: str, section: str) -> None:
    known = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in content.items():
        if key not in known:
            place = f" in [{section}]" if section else ""
            raise InvalidConfig(
                f"unknown key {key!r}{place}", where=where, fix=f"known keys{place}: {', '.join(known)}"
            )
        inner = known[key]
        inside = f"{section}.{key}" if section else key
        if get_origin(inner) is dict and isinstance(value, dict):
            for name, each in value.items():
                if isinstance(each, dict):
                    _refuse_unknown(each, get_args(inner)[1], where, f'{inside}."{name}"')
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct) and isinstance(value, dict):
            _refuse_unknown(value, inner, where, inside)


@contextmanager
def _within(key: str) -> Iterator[None]:
    """Gives an error of a value the key before it."""
    try:
        yield
    except InvalidRequest as error:
        raise error.again(where=f"{key}.{error.where}" if error.where else key) from error


def _check_taint(key: str) -> None:
    if key and not _TAINT.fullmatch(key):
        raise InvalidRequest(
            f"{key!r:.80} is not the key of a taint", fix='name the key alone: "csi.weightless.dev/agent-not-ready"'
        )


def _check_host(host: str) -> None:
    try:
        same = Reference.parse(f"{host}/name:tag").host == host
    except InvalidReference:
        same = False
    if not same:
        raise InvalidRequest(
            "no reference has this registry", fix="name it as references do: host or host:port; Docker Hub is docker.io"
        )


def _check_pattern(pattern: str) -> None:
    """A pattern that could match nothing was meant for something else."""
    host, _, path = pattern.partition("/")
    if "://" in pattern or "@" in pattern or not host or pattern != pattern.strip() or ":" in path or "*" in path:
        raise InvalidRequest(
            f"{pattern!r:.200} is no pattern of artifacts",
            fix="write host[:port][/path], without scheme, tag and digest; * stands for one label of the host",
        )
