"""hosts.toml as containerd documents it, and the mistakes people make in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuse.artifact.reference import Reference
from fuse.errors import AddressRefused, InvalidConfig
from fuse.registry.access import Access, ClientCertificate, Credential, Endpoint
from fuse.registry.hosts import load_access
from fuse.registry.repository import Repository
from fuse.registry.transport import Transport

USER = Credential(username="u", password="p")


def load(host: str, certs_dir: Path | None = None, *, plain_http: bool = False) -> Access:
    return load_access(
        host, certs_dir=certs_dir, plain_http=plain_http, credential=lambda _host: None, local_allowed=False
    )


def write(directory: Path, name: str, text: str) -> Path:
    (directory / name).mkdir(parents=True, exist_ok=True)
    (directory / name / "hosts.toml").write_text(text)
    return directory


@pytest.mark.parametrize(
    ("host", "plain_http", "url"),
    [
        ("registry.test", False, "https://registry.test/v2"),
        ("registry.test:5000", True, "http://registry.test:5000/v2"),
        ("docker.io", False, "https://registry-1.docker.io/v2"),
        ("localhost:5000", False, "http://localhost:5000/v2"),
        ("127.0.0.1:5000", False, "http://127.0.0.1:5000/v2"),
        ("[::1]:5000", False, "http://[::1]:5000/v2"),
        ("localhost.test", False, "https://localhost.test/v2"),
    ],
)
def test_without_a_file_there_is_the_origin(host: str, plain_http: bool, url: str) -> None:
    """https, but plain http on this machine itself or on the administrator's word, which names no host."""
    access = load(host, plain_http=plain_http)
    (endpoint,) = access.endpoints

    assert (url, False, True, "") == (endpoint.url, endpoint.named, endpoint.origin, endpoint.namespace)
    assert plain_http == access.local_allowed


def test_a_host_longer_than_a_files_name_has_no_file(tmp_path: Path) -> None:
    """The author of a pod writes it; that nobody has this name is told by the name server."""
    host = "a." * 130 + "test"
    assert f"https://{host}/v2" == load(host, tmp_path).endpoints[0].url


@pytest.mark.parametrize("host", ["169.254.169.254", "[fd00:ec2::254]", "[::ffff:169.254.169.254]:80", "0.0.0.0:5000"])
def test_plain_http_opens_no_way_to_the_clouds_metadata(host: str) -> None:
    """A node that may speak plain http to its registries does not speak it to whatever the author of a pod writes."""
    access = load(host, plain_http=True)
    transport = Transport(environment={})
    try:
        with pytest.raises(AddressRefused):
            Repository(Reference.parse(f"{host}/latest/meta-data:v1"), access, transport).manifest("v1")
    finally:
        transport.close()


def test_the_example_of_containerds_documentation(tmp_path: Path) -> None:
    """Mirrors in the file's order, each with its own settings; the server last; `ns` for all that are not the registry."""
    (tmp_path / "docker.io").mkdir()
    (tmp_path / "docker.io" / "ca.pem").write_text("CA-1")
    (tmp_path / "ca-2.pem").write_text("CA-2")
    for name in ("client.cert", "client.key", "both.pem"):
        (tmp_path / "docker.io" / name).write_text(name)
    write(
        tmp_path,
        "docker.io",
        f"""
        server = "https://registry-1.docker.io"
        [host."https://mirror.test:5000"]
          capabilities = ["pull", "resolve"]
          ca = ["ca.pem", "{tmp_path}/ca-2.pem"]
          client = [["client.cert", "client.key"], "both.pem"]
          dial_timeout = "1s"
          [host."https://mirror.test:5000".header]
            x-custom-1 = "value"
            x-custom-2 = ["a", "b"]
        [host."http://127.0.0.1:65001"]
          capabilities = ["pull"]
          skip_verify = true
        [host."https://harbor.test/v2/proxy"]
          override_path = true
        [host."harbor.test/sub/"]
        """,
    )

    access = load("docker.io", tmp_path)

    assert (
        Endpoint(
            url="https://mirror.test:5000/v2",
            named=True,
            namespace="docker.io",
            ca_pems=("CA-1", "CA-2"),
            client_certificates=(ClientCertificate("client.cert", "client.key"), ClientCertificate("both.pem")),
            headers=(("x-custom-1", "value"), ("x-custom-2", "a, b")),
        ),
        Endpoint(
            url="http://127.0.0.1:65001/v2", named=True, namespace="docker.io", capabilities=("pull",), skip_verify=True
        ),
        Endpoint(
            url="https://harbor.test/v2/proxy",
            named=True,
            namespace="docker.io",
            capabilities=("pull", "resolve", "push"),
        ),
        Endpoint(
            url="https://harbor.test/sub/v2",
            named=True,
            namespace="docker.io",
            capabilities=("pull", "resolve", "push"),
        ),
        Endpoint(
            url="https://registry-1.docker.io/v2", named=True, origin=True, capabilities=("pull", "resolve", "push")
        ),
    ) == access.endpoints


def test_the_directory_is_found_as_containerd_does(tmp_path: Path) -> None:
    """`host_port_`, then `host:port`, then `_default`."""
    for name, server in (("_default", "a"), ("h.test:5000", "b"), ("h.test_5000_", "c")):
        write(tmp_path, name, f'server = "https://{server}.test"')
        assert f"https://{server}.test/v2" == load("h.test:5000", tmp_path).endpoints[-1].url


def test_a_default_mirror_stands_before_the_registry_itself(tmp_path: Path) -> None:
    """Without `server` the origin is the registry, which the file does not name."""
    write(tmp_path, "_default", '[host."http://mirror.test"]')

    mirror, origin = load("registry.test:5000", tmp_path).endpoints

    assert ("http://mirror.test/v2", "registry.test:5000", False) == (mirror.url, mirror.namespace, mirror.origin)
    assert ("https://registry.test:5000/v2", False, True) == (origin.url, origin.named, origin.origin)


def test_settings_at_the_top_are_for_the_server(tmp_path: Path) -> None:
    """As in containerd: they stand beside `server`."""
    write(tmp_path, "registry.test", 'server = "http://inside.test"\nskip_verify = true\ncapabilities = ["pull"]')

    (origin,) = load("registry.test", tmp_path).endpoints

    assert ("http://inside.test/v2", True, ("pull",), "registry.test") == (
        origin.url,
        origin.skip_verify,
        origin.capabilities,
        origin.namespace,
    )


def test_dockers_certificate_files_count_without_hosts_toml(tmp_path: Path) -> None:
    """*.crt are authorities, *.cert and *.key a client's pair."""
    directory = tmp_path / "registry.test"
    directory.mkdir()
    for name in ("ca.crt", "client.cert", "client.key"):
        (directory / name).write_text(name)

    (origin,) = load("registry.test", tmp_path).endpoints

    assert (("ca.crt",), (ClientCertificate("client.cert", "client.key"),)) == (
        origin.ca_pems,
        origin.client_certificates,
    )


def test_each_host_gets_its_own_credential(tmp_path: Path) -> None:
    """A mirror is asked about under its own name; docker.io under that name."""
    write(tmp_path, "docker.io", '[host."https://mirror.test"]')
    asked: list[str] = []

    def credential(host: str) -> Credential | None:
        asked.append(host)
        return USER if host == "docker.io" else None

    mirror, origin = load_access(
        "docker.io", certs_dir=tmp_path, plain_http=False, credential=credential, local_allowed=True
    ).endpoints

    assert ["mirror.test", "docker.io"] == asked
    assert (None, USER) == (mirror.credential, origin.credential)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("server = ", "not TOML"),
        ("sever = 'https://x'", "unknown key sever"),
        ("[host.'https://m']\nca_cert = 'x'", 'unknown key host."https://m".ca_cert'),
        ("server = 1", "server: expected"),
        ("server = 'https://u:p@x'", "server: expected"),
        ("[host.'https://m:port']", 'host."https://m:port": expected'),
        ("capabilities = ['pull', 'fly']", "capabilities: expected"),
        ("skip_verify = 'yes'", "skip_verify: expected"),
        ("ca = 1", "ca: expected"),
        ("ca = 'missing.pem'", "missing.pem"),
        ("client = [['a', 'b', 'c']]", "client: expected"),
        ("header = 'x'", "header: expected"),
        ("header = {'x y' = 'z'}", "header.x y: expected"),
        ('header = {x = "a\\r\\nb"}', "header.x: expected"),
        ('header = {x = "ü"}', "header.x: expected"),
        ("host = 'x'", "host: expected"),
        ("host = {x = 1}", 'host."x": expected'),
    ],
)
def test_a_mistake_names_file_and_key(tmp_path: Path, text: str, expected: str) -> None:
    """Nothing is skipped silently."""
    write(tmp_path, "registry.test", text)

    with pytest.raises(InvalidConfig) as caught:
        load("registry.test", tmp_path)

    assert expected in str(caught.value)
    assert f"{tmp_path}/registry.test/hosts.toml" in str(caught.value)
