"""What `weightless doctor` says of what is wrong, and that it changes nothing."""

from __future__ import annotations

import errno
import json
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from fuse.errors import NotFound as Gone
from fuse.errors import Unauthenticated, Unavailable, WeightlessError
from fuse.mounting import selinux
from fuse.mounting.mountinfo import MountTable, parse
from fuse.mounting.status import Health, MountStatus
from fuse.registry.access import Access, Credential, Endpoint
from tests.support import ordinary
from tests.support.commandline import World
from tests.support.registry import FaultyRegistry
from weightless.config import CredentialsSection
from weightless.doctor import configuration, examination, processes, registry, storage, system
from weightless.doctor.examination import look
from weightless.doctor.finding import Finding
from weightless.doctor.storage import Directory

CHARACTER = stat.S_IFCHR | 0o666
CANARY = "canary-hunter2"


def states(findings: Iterable[Finding] | Finding) -> list[str]:
    found = [findings] if isinstance(findings, Finding) else list(findings)
    for finding in found:
        assert finding.what
        assert bool(finding.cure) == (finding.state in ("warning", "broken")), finding
    return [finding.state for finding in found]


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("6.12.1-generic", ["ok"]),
        ("6.9.0", ["warning"]),
        ("6.5", ["warning"] * 2),
        ("5.15.0-91-generic", ["warning"] * 3),
        ("4.18.0-513.el8", ["broken"]),
        ("10.0", ["ok"]),
        ("linux", ["warning"]),
    ],
)
def test_kernels(release: str, expected: list[str]) -> None:
    """A warning for each feature that is lacking; too old, and nothing works."""
    assert states(system.kernel(release)) == expected


def test_what_mounting_needs() -> None:
    """The device, the rights of root, the helper of everybody else, descriptors."""
    path = Path("/dev/fuse")
    assert states(system.fuse_device(path, None, 0)) == ["broken"]
    assert states(system.fuse_device(path, stat.S_IFREG, 0)) == ["broken"]
    assert states(system.fuse_device(path, CHARACTER, 0)) == ["ok"]
    for refusal, cure in ((errno.EACCES, "chmod"), (errno.EPERM, "privileged"), (errno.ENODEV, "modprobe")):
        found = system.fuse_device(path, CHARACTER, refusal)
        assert states(found) == ["broken"]
        assert cure in found.cure
    assert states(system.fusermount(None, 0, root=False)) == ["broken"]
    assert states(system.fusermount("/bin/fusermount3", 0o755, root=False)) == ["broken"]
    assert states(system.fusermount("/bin/fusermount3", 0o4755, root=False)) == ["ok"]
    assert states(system.fusermount(None, 0, root=True)) == ["skipped"]
    assert states(system.rights("000001ffffffffff", root=True)) == ["ok"]
    assert states(system.rights("00000000a80425fb", root=True)) == ["broken"]
    assert states(system.rights("", root=True)) == ["warning"]
    assert states(system.rights("0", root=False)) == ["skipped"]
    assert states(system.open_files(1024)) == ["warning"]
    assert states(system.open_files(-1)) == states(system.open_files(4096)) == ["ok"]
    assert states(system.overlay("nodev\ttmpfs\n\text4\n", root=True)) == ["warning"]
    assert states(system.overlay("nodev\toverlay\n", root=True)) == ["ok"]
    assert states(system.overlay("", root=False)) == ["skipped"]


def test_labels() -> None:
    """Where SELinux is, models want one, and one that the policy has."""
    seen, label = system.SELinux, selinux.FOR_CONTAINERS
    assert states(system.labels(seen(active=False), label)) == ["skipped"]
    assert states(system.labels(seen(active=True, enforcing=True), "")) == ["warning"]
    assert states(system.labels(seen(active=True, enforcing=None), "")) == ["warning"]
    assert states(system.labels(seen(active=True, known=True), label)) == ["ok"]
    assert states(system.labels(seen(active=True, known=None), label)) == ["ok"]
    assert states(system.labels(seen(active=True, known=False), label)) == ["broken"]
    assert label in system.labels(seen(active=True), "").cure


def test_clocks() -> None:
    """One that is years behind makes every certificate invalid."""
    assert states(system.clock(0.0, synchronised=True)) == ["broken"]
    assert states(system.clock(1.8e9, synchronised=False)) == ["warning"]
    assert states(system.clock(1.8e9, synchronised=None)) == states(system.clock(1.8e9, synchronised=True)) == ["ok"]


def table(*lines: str) -> MountTable:
    return MountTable(parse("\n".join(lines).encode()))


def test_kubelets_directory_must_be_shared() -> None:
    """The mount in which it lies counts, and master alone is not enough."""
    kubelet = Path("/var/lib/kubelet")
    root, inner = "1 0 8:1 / / rw shared:1 - ext4 /dev/a rw", "2 1 8:2 / /var/lib/kubelet rw {}- xfs /dev/b rw"
    assert states(system.propagation(kubelet, table(root))) == ["ok"]
    assert states(system.propagation(kubelet, table(root, inner.format("")))) == ["broken"]
    assert states(system.propagation(kubelet, table(root, inner.format("master:1 ")))) == ["broken"]
    assert states(system.propagation(kubelet, table(root, inner.format("shared:7 master:1 ")))) == ["ok"]
    assert states(system.propagation(kubelet, table())) == ["warning"]


def test_mounts_that_nobody_serves_are_named_once() -> None:
    """Whatever many binds there are of them; those of holders that answer are not."""
    lines = [
        f"{number} 1 0:{device} / {place} ro - fuse.weightless weightless ro"
        for number, device, place in ((5, 40, "/k/m"), (6, 40, "/k/pod"), (7, 41, "/dead"), (8, 41, "/dead2"))
    ]
    (found,) = system.leftovers(table(*lines), {"/k/m"})
    assert states(found) == ["warning"]
    assert "/dead " in found.what
    assert states(system.leftovers(table(*lines[:2]), {"/k/m"})) == ["ok"]


def seen(**values: Any) -> Directory:
    return Directory(**({"path": Path("/c"), "exists": True, "total_bytes": 10**12, "free_bytes": 5 * 10**11} | values))


@pytest.mark.parametrize(
    ("values", "quota", "expected"),
    [
        ({}, None, ["ok", "ok"]),
        ({"exists": False}, None, ["skipped", "ok"]),
        ({"exists": False, "writable": False}, None, ["broken", "ok"]),
        ({"is_directory": False}, None, ["broken", "ok"]),
        ({"read_only": True}, None, ["broken", "ok"]),
        ({"mode": 0o40777}, None, ["broken", "ok"]),
        ({"file_system": "nfs4"}, None, ["ok", "warning", "ok"]),
        ({"file_system": "tmpfs"}, None, ["ok", "warning", "ok"]),
        ({"file_system": "overlay"}, None, ["ok", "warning", "ok"]),
        ({"free_bytes": 10**9}, None, ["ok", "warning"]),
        ({"free_bytes": 505 * 10**8}, None, ["ok", "warning"]),
        ({}, 2 * 10**12, ["ok", "warning"]),
        ({}, 10**11, ["ok", "ok"]),
    ],
)
def test_caches(values: dict[str, Any], quota: int | None, expected: list[str]) -> None:
    """What makes one useless, and what makes one worse than it could be."""
    assert states(storage.cache(seen(**values), quota_bytes=quota, free_space=None)) == expected


def test_a_full_disk_takes_no_records() -> None:
    """The cache does without, and what is published has to be written down."""
    assert states(storage.usable("state", seen(free_bytes=0), choice="x")) == ["broken"]
    assert states(storage.usable("state", seen(free_bytes=10**7), choice="x")) == ["ok"]
    assert states(storage.cache(seen(free_bytes=0), quota_bytes=None, free_space=None)) == ["ok", "warning"]


def test_records_that_cannot_be_read() -> None:
    """They keep orphans from being cleaned up."""
    assert states(storage.records(1, 3)) == ["warning"]
    assert states(storage.records(0, 3)) == ["ok"]


def test_records_are_told_apart_whatever_became_of_them(tmp_path: Path) -> None:
    """A disk that fails turns text into no text."""
    (tmp_path / "volumes").mkdir()
    for number, content in enumerate((b"", b"{", b'{"name": "\xff"}', b"[" * 100_000)):
        (tmp_path / "volumes" / f"{number}.json").write_bytes(content)
    *_, records = examination._state(tmp_path, used=True)
    assert states(records) == ["warning"]
    assert records.what.startswith("4 of 4")


def test_sockets_that_should_be_answered() -> None:
    """A dead one is broken; one that need not be there may be missing."""
    path = Path("/s")
    assert states(processes.listener("node plugin", path, "answers", wanted=True)) == ["ok"]
    assert states(processes.listener("keeper", path, "absent", wanted=True)) == ["broken"]
    assert states(processes.listener("fetcher", path, "refuses", wanted=False)) == ["broken"]
    assert states(processes.listener("fetcher", path, "absent", wanted=False)) == ["skipped"]


def test_conditions_of_mounts() -> None:
    """Each that is not well, and where its cure stands."""

    def mount(health: Health) -> MountStatus:
        return MountStatus(
            id="x", mountpoint="/m", reference="r", digest="d", worker_pid=1, keeper_pid=1, fetcher_pid=1, holder_pid=1,
            bytes_cached=0, bytes_total=0, condition=health,
        )  # fmt: skip

    outage = Health(state="degraded", reason="away", reason_code="registry_unavailable", since=1.0)
    wrong = Health(state="broken", reason="wrong", reason_code="corrupt_blob", since=1.0)
    found = list(processes.mounts([mount(Health()), mount(outage), mount(wrong)]))
    assert states(found) == ["warning", "broken"]
    assert "section corrupt_blob" in found[1].cure
    assert states(processes.mounts([mount(Health())])) == ["ok"]


def test_every_fault_of_hosts_toml_is_told(tmp_path: Path) -> None:
    """Of each directory, by containerd's names; a good one is none."""
    assert configuration.host_of("host_5000_") == "host:5000"
    assert configuration.host_of("registry.example.com") == "registry.example.com"
    for name, text in (("a.example.com", "x ="), ("b_5000_", 'server = "://"'), ("_default", ""), ("c", "[host]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "hosts.toml").write_text(text)
    found = list(configuration.hosts(tmp_path))
    assert states(found) == ["broken", "broken"]
    assert ["a.example.com" in found[0].what, "b_5000_" in found[1].what] == [True, True]
    assert states(configuration.hosts(None)) == ["skipped"]
    assert states(configuration.hosts(tmp_path / "none")) == ["warning"]


def test_a_docker_config_that_is_none(tmp_path: Path) -> None:
    """It would fail each mount."""
    assert states(configuration.docker(tmp_path)) == ["ok"]
    (tmp_path / "config.json").write_text("{")
    assert states(configuration.docker(tmp_path)) == ["broken"]


MIRROR = Endpoint(url="https://mirror/v2", capabilities=("pull",), skip_verify=True)
ORIGIN = Endpoint(url="https://r/v2", origin=True, credential=Credential(username="bob", password=CANARY))


@pytest.mark.parametrize(
    ("mirror", "origin", "expected"),
    [
        (None, None, ["ok", "ok", "warning"]),
        (Gone("not there"), None, ["ok", "ok", "warning"]),
        (Unavailable("away"), None, ["ok", "warning", "warning"]),
        (None, Unauthenticated("no"), ["broken", "ok", "warning"]),
        (None, Gone("no such tag"), ["broken", "ok", "warning"]),
    ],
)
def test_a_registry_decides_and_its_mirrors_are_passed_over(
    mirror: WeightlessError | None, origin: WeightlessError | None, expected: list[str]
) -> None:
    """The registry is asked first; no credential is shown; a certificate that nobody checks is told."""
    asked = []

    def ask(access: Access, target: str) -> str:
        (endpoint,) = access.endpoints
        asked.append((endpoint.url, target, endpoint.capabilities))
        error = origin if endpoint.origin else mirror
        if error is not None:
            raise error
        return "sha256:1"

    found = list(registry.registry("r/a:v1", Access(registry="r", endpoints=(MIRROR, ORIGIN)), ask))
    assert states(found) == expected
    assert [url for url, _, _ in asked] == ["https://r/v2", "https://mirror/v2"]
    assert asked[1][1:] == ("sha256:1" if origin is None else "v1", ("pull", "resolve"))
    assert CANARY not in repr(found)


def test_a_directory_that_is_missing_is_judged_by_where_it_would_be(tmp_path: Path) -> None:
    """And a file in its way is seen."""
    missing = look(tmp_path / "a" / "b")
    assert (missing.exists, missing.writable, missing.total_bytes > 0) == (False, True, True)
    (tmp_path / "file").write_text("")
    assert not look(tmp_path / "file").is_directory
    assert not look(tmp_path / "file" / "b").is_directory


def test_credentials_of_pods(tmp_path: Path) -> None:
    """What the node plugin would refuse to start with is broken; where there is no plugin there is nothing to say."""
    assert states(configuration.of_pods(CredentialsSection(), used=False)) == ["skipped"]
    assert states(configuration.of_pods(CredentialsSection(docker_config=str(tmp_path)), used=True)) == ["ok"]
    missing = CredentialsSection(docker_config=str(tmp_path / "none"))
    assert states(configuration.of_pods(missing, used=False)) == ["broken"]
    (tmp_path / "providers.json").write_text(CANARY)
    providers = CredentialsSection(
        provider_config=str(tmp_path / "providers.json"), provider_bin_dir=str(tmp_path), docker_config=str(tmp_path)
    )
    found = configuration.of_pods(providers, used=True)
    assert states(found) == ["broken"]
    assert CANARY not in repr(found)


# ---- the command ----


def everything(root: Path) -> list[tuple[str, int, int, int]]:
    paths = [root, *root.rglob("*")]
    return [(str(path), path.lstat().st_mode, path.lstat().st_mtime_ns, path.lstat().st_size) for path in sorted(paths)]


def test_the_command_tells_all_faults_at_once_and_changes_nothing(tmp_path: Path) -> None:
    """A configuration that is none is one of them; the exit code says that something is broken."""
    world = World(tmp_path)
    (tmp_path / "empty.toml").write_text("cache-dri = 1\n")
    (tmp_path / "docker" / "config.json").write_text("{")
    (tmp_path / "state").mkdir()
    hosts = tmp_path / "certs" / "registry.test"
    hosts.mkdir(parents=True)
    (hosts / "hosts.toml").write_text(f'[host."https://bob:{CANARY}@mirror.test"]\n')
    before = everything(tmp_path)
    result = world.run("doctor", "--json", "--certs-dir", tmp_path / "certs", code=1)
    assert "unforeseen" not in result.stderr
    found = {each["check"]: each for each in json.loads(result.stdout)}
    assert found["configuration"]["state"] == "broken"
    assert "cache-dri" in found["configuration"]["what"]
    assert found["docker config"]["state"] == found["hosts.toml"]["state"] == "broken"
    assert "mirror.test" in found["hosts.toml"]["what"]
    assert CANARY not in result.stdout
    assert found["cache"]["state"] == "skipped"
    assert everything(tmp_path) == before


@pytest.mark.kernel
def test_a_reference_has_its_registry_asked(tmp_path: Path) -> None:
    """The table says what it answers; without a reference nobody is asked."""
    world = World(tmp_path)
    with FaultyRegistry() as model:
        world.run("doctor")
        assert model.requests() == []
        result = world.run("doctor", f"127.0.0.1:{model.port}/models/none:v1", code=1)
        assert model.requests()
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("registry"))
    assert "broken" in line
    assert "check the host, the repository and the tag" in line
    assert "1 broken" in result.stderr
    result = world.run("doctor", "no reference", code=1)
    assert result.stderr.startswith("error: REFERENCE")


def test_on_a_node_the_registry_is_asked_as_for_a_pod(tmp_path: Path) -> None:
    """By the rules for pods: nothing that listens on the node itself."""
    world = World(tmp_path)
    world.environment["CSI_ENDPOINT"] = f"unix://{tmp_path}/csi.sock"
    result = world.run("doctor", "--json", "127.0.0.1:1/models/none:v1", code=1)
    (found,) = (each for each in json.loads(result.stdout) if each["check"] == "registry")
    assert found["state"] == "broken"
    assert "hosts.toml" in found["cure"]


@pytest.mark.kernel
def test_an_ordinary_user_is_told_what_concerns_it(tmp_path: Path) -> None:
    """It mounts by fusermount3, and not as root does."""
    tmp_path.chmod(0o755)
    world = World(tmp_path)
    program = [sys.executable, "-m", "weightless", "doctor", "--json", "--cache-dir", "/root/closed/cache"]
    result = ordinary.run(
        tmp_path, program, environment={**world.environment, "HOME": "/", "PYTHONPATH": str(Path.cwd())}
    )
    found = {each["check"]: each for each in json.loads(result.stdout)}
    assert found["fusermount3"]["state"] == "ok"
    assert found["rights"]["state"] == found["overlay"]["state"] == "skipped"
    assert found["cache"]["state"] in ("broken", "warning")
