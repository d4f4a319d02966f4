"""The proxy policy as Go has it, and requests of both clients through a real proxy."""

from __future__ import annotations

import base64
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from fuse.artifact.digest import Digest
from fuse.errors import AddressRefused, InvalidConfig
from fuse.registry.access import Endpoint
from fuse.registry.proxies import ProxyPolicy
from fuse.registry.transport import Transport
from tests.fuse.registry.conftest import REPOSITORY, Authority, repository_at
from tests.support.registry import FaultyRegistry

BLOB = b"0123456789" * 1000

ENVIRONMENT = {
    "HTTP_PROXY": "proxy.test:3128",
    "https_proxy": "http://user:p%40ss@secure.test:8080",
    "NO_PROXY": "example.com, .sub.test,*.star.test, 10.0.0.0/8,192.168.1.5,fd00::/8,port.test:5000,[2001:db8::1]:443",
}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://registry.test/v2/", "http://proxy.test:3128"),
        ("https://registry.test/v2/", "http://user:p%40ss@secure.test:8080"),
        ("http://example.com/", None),
        ("http://a.example.com/", None),
        ("http://notexample.com/", "http://proxy.test:3128"),
        ("http://sub.test/", "http://proxy.test:3128"),
        ("http://a.sub.test/", None),
        ("http://star.test/", "http://proxy.test:3128"),
        ("http://a.star.test/", None),
        ("http://10.2.3.4/", None),
        ("http://11.2.3.4/", "http://proxy.test:3128"),
        ("http://192.168.1.5:5000/", None),
        ("http://[fd00::1]/", None),
        ("https://[2001:db8::1]/", None),
        ("http://port.test:5000/", None),
        ("http://port.test:5001/", "http://proxy.test:3128"),
        ("http://localhost:5000/", None),
        ("http://127.0.0.1/", None),
        ("http://127.4.4.4/", None),
        ("http://[::1]/", None),
    ],
)
def test_the_environment_is_read_as_go_reads_it(url: str, expected: str | None) -> None:
    """Names, suffixes, wildcards, ranges and ports of NO_PROXY; loopback is never proxied."""
    assert expected == ProxyPolicy(ENVIRONMENT).url_for(url)


def test_all_proxy_is_the_last_resort_and_a_star_switches_off() -> None:
    """As curl and Go have them."""
    everywhere = {"all_proxy": "http://any.test:1"}

    assert "http://any.test:1" == ProxyPolicy(everywhere).url_for("https://x.test/")
    assert ProxyPolicy({**everywhere, "no_proxy": "*"}).url_for("https://x.test/") is None


@pytest.mark.parametrize("proxy", ["socks5://p.test:1080", "https://p.test", "http://p.test:port"])
def test_an_unusable_proxy_is_named_without_its_password(proxy: str) -> None:
    """Better no request than one that goes around the proxy."""
    with pytest.raises(InvalidConfig, match="HTTPS_PROXY"):
        ProxyPolicy({"HTTPS_PROXY": proxy}).proxy_for("https://x.test/")


class Tunnel:
    """A small HTTP proxy: CONNECT and absolute URLs, always to the one server it is given. Logs first lines and authorization."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.seen: list[tuple[str, str]] = []
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target_port))
            self._sockets += [client, server]
            thread = threading.Thread(target=self._serve, args=(client, server))
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                part = client.recv(65536)
                if not part:
                    break
                head += part
            lines = head.decode("latin-1").split("\r\n")
            authorization = [line for line in lines if line.lower().startswith("proxy-authorization:")]
            self.seen.append((lines[0], authorization[0].partition(": ")[2] if authorization else ""))
            if lines[0].startswith("CONNECT"):
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            else:
                # One request a connection is enough here.
                server.sendall(re.sub(rb"http://registry\.test(:80)?", b"", head, count=1))
            back = threading.Thread(target=_pump, args=(server, client))
            self._threads.append(back)
            back.start()
            _pump(client, server)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()
        for sock in self._sockets:
            sock.close()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while content := source.recv(65536):
            target.sendall(content)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture(params=["http", "https"])
def proxied(request: pytest.FixtureRequest, authority: Authority) -> Iterator[tuple[Tunnel, Transport, Endpoint, str]]:
    """A registry that can be reached through the proxy only: its name resolves nowhere."""
    secure = request.param == "https"
    with FaultyRegistry(tls=authority.server if secure else None) as registry:
        registry.add_manifest(REPOSITORY, b"{}", tags=["v1"])
        registry.add_blob(BLOB)
        tunnel = Tunnel(registry.port)
        environment = {f"{request.param.upper()}_PROXY": f"http://user:p%40ss@127.0.0.1:{tunnel.port}"}
        with Transport(environment=environment) as transport:
            endpoint = Endpoint(url=f"{request.param}://registry.test/v2", origin=True, ca_pems=(authority.pem,))
            yield tunnel, transport, endpoint, request.param
        tunnel.close()


def test_both_clients_go_through_the_proxy(proxied: tuple[Tunnel, Transport, Endpoint, str]) -> None:
    """Its address is the administrator's choice (no rule), the registry's name is left to it, and it gets its own password."""
    tunnel, transport, endpoint, scheme = proxied
    repo = repository_at(transport, endpoint)

    assert b"{}" == repo.manifest("v1").content
    with repo.open_blob(Digest.of(BLOB), len(BLOB), 5, 10) as stream:
        content = bytearray(10)
        assert 10 == stream.readinto(memoryview(content))
    assert BLOB[5:15] == content

    expected = "CONNECT registry.test:443 HTTP/1.1" if scheme == "https" else "GET http://registry.test"
    user = "Basic " + base64.b64encode(b"user:p@ss").decode()
    assert 2 == len(tunnel.seen)
    for line, authorization in tunnel.seen:
        assert line.startswith(expected)
        assert user == authorization


def test_literal_addresses_are_checked_before_a_proxy_is_asked() -> None:
    """A proxy resolves names, but no rule is lifted for what needs no resolving."""
    with Transport(environment={"ALL_PROXY": "http://127.0.0.1:9"}) as transport:
        repo = repository_at(transport, Endpoint(url="https://169.254.169.254/v2", origin=True))
        with pytest.raises(AddressRefused):
            repo.manifest("v1")
        with pytest.raises(AddressRefused):
            repo.open_blob(Digest.of(BLOB), len(BLOB), 0, 10)
