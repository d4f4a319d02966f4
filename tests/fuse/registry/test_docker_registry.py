"""The client against Debian's `docker-registry` (distribution 2.8): plain, with Basic credentials over TLS, with tokens."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import ssl
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import CertificateBuilder, Name, NameAttribute, random_serial_number
from cryptography.x509.oid import NameOID

from fuse.artifact.digest import Digest
from fuse.artifact.reference import Reference
from fuse.errors import NotFound, Unauthenticated
from fuse.registry.access import Credential
from fuse.registry.hosts import load_access
from fuse.registry.repository import Repository
from fuse.registry.transport import Transport
from tests.conftest import need_program
from tests.fuse.registry.conftest import Authority
from weightless.demo.registry import MANIFEST_TYPE

USER = Credential(username="test", password="s3cret-pass")
HTPASSWD = "test:$2b$05$Ya9hAvJ.3h4l7SKcDF9rN.UWfT25don47Kj4Ky3H7UR26uAuAZj3S\n"  # bcrypt of USER's password
BLOB = os.urandom(5 * 1024 * 1024 + 3)
CONFIG = b"{}"
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": str(Digest.of(CONFIG)), "size": 2},
        "layers": [
            {"mediaType": "application/octet-stream", "digest": str(Digest.of(BLOB)), "size": len(BLOB)},
        ],
    }
).encode()


@dataclass(frozen=True)
class Running:
    """A registry process that holds the artifact `a/b:v1`."""

    host: str
    certs_dir: Path
    log: Path

    def repository(self, transport: Transport, credential: Credential | None, name: str = "a/b:v1") -> Repository:
        access = load_access(
            self.host,
            certs_dir=self.certs_dir,
            plain_http=False,
            credential=lambda _host: credential,
            local_allowed=True,
        )
        return Repository(Reference.parse(f"{self.host}/{name}"), access, transport)


@pytest.fixture(params=["plain", "basic over TLS", "token"])
def running(
    request: pytest.FixtureRequest, tmp_path: Path, authority: Authority, tokens: TokenService
) -> Iterator[Running]:
    program = need_program("docker-registry", "docker-registry")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "data")}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "x"},
    }
    authorization: Callable[[], str] = lambda: ""  # noqa: E731 - replaced below
    if request.param == "basic over TLS":
        (tmp_path / "htpasswd").write_text(HTPASSWD)
        settings["auth"] = {"htpasswd": {"realm": "test", "path": str(tmp_path / "htpasswd")}}
        certificate = authority.ca.issue_cert("127.0.0.1")
        (tmp_path / "tls.crt").write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
        (tmp_path / "tls.key").write_bytes(certificate.private_key_pem.bytes())
        settings["http"]["tls"] = {"certificate": str(tmp_path / "tls.crt"), "key": str(tmp_path / "tls.key")}
        basic = base64.b64encode(f"{USER.username}:{USER.password}".encode()).decode()
        authorization = lambda: f"Basic {basic}"  # noqa: E731 - one of three
    elif request.param == "token":
        (tmp_path / "issuer.pem").write_bytes(tokens.certificate)
        settings["auth"] = {
            "token": {
                "realm": tokens.realm,
                "service": "test",
                "issuer": "test",
                "rootcertbundle": str(tmp_path / "issuer.pem"),
            }
        }
        authorization = lambda: f"Bearer {tokens.token('repository:a/b:pull,push')}"  # noqa: E731 - one of three
    (tmp_path / "config.yml").write_text(json.dumps(settings))  # JSON is YAML
    secure = "tls" in settings["http"]
    host = f"127.0.0.1:{port}"
    directory = tmp_path / "certs.d" / f"127.0.0.1_{port}_"
    directory.mkdir(parents=True)
    (directory / "ca.pem").write_text(authority.pem)
    scheme = "https" if secure else "http"
    (directory / "hosts.toml").write_text(f'server = "{scheme}://{host}"\nca = "ca.pem"\n')
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([program, "serve", str(tmp_path / "config.yml")], stdout=output, stderr=output)
        try:
            _wait_for_port(port, process, log)
            _push(f"{scheme}://{host}", authorization, tmp_path, authority)
            yield Running(host=host, certs_dir=tmp_path / "certs.d", log=log)
        finally:
            process.terminate()
            process.wait(timeout=10)
            shutil.rmtree(tmp_path / "data", ignore_errors=True)


def _wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    pytest.fail(f"docker-registry does not listen: {log.read_text()}")


def _push(url: str, authorization: Callable[[], str], directory: Path, authority: Authority) -> None:
    """As the distribution specification says; our client only pulls."""
    (directory / "push-ca.pem").write_text(authority.pem)
    headers = {"Authorization": authorization()} if authorization() else {}
    with httpx.Client(verify=_context(directory / "push-ca.pem"), headers=headers, trust_env=False) as client:
        for content in (BLOB, CONFIG):
            location = client.post(f"{url}/v2/a/b/blobs/uploads/").raise_for_status().headers["Location"]
            put = client.put(
                httpx.URL(location).copy_merge_params({"digest": str(Digest.of(content))}), content=content
            )
            put.raise_for_status()
        put = client.put(f"{url}/v2/a/b/manifests/v1", content=MANIFEST, headers={"Content-Type": MANIFEST_TYPE})
        put.raise_for_status()


def _context(ca: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca))


class TokenService:
    """Signs the JSON web tokens that distribution accepts (spec/auth/jwt): RS256, the certificate in `x5c`."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = Name([NameAttribute(NameOID.COMMON_NAME, "test issuer")])
        now = datetime.now(UTC)
        certificate = (
            CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(hours=1))
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = certificate.public_bytes(Encoding.PEM)
        self._chain = [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()]
        self.asked: list[str] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                expected = base64.b64encode(f"{USER.username}:{USER.password}".encode()).decode()
                allowed = self.headers.get("Authorization") == f"Basic {expected}"
                scope = query.get("scope", [""])[0]
                service.asked.append(scope)
                body = json.dumps({"token": service.token(scope), "expires_in": 300}).encode() if allowed else b"{}"
                self.send_response(200 if allowed else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.realm = f"http://127.0.0.1:{self._server.server_address[1]}/auth"
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def token(self, scope: str) -> str:
        kind, name, actions = scope.split(":")
        now = int(time.time())
        header = {"typ": "JWT", "alg": "RS256", "x5c": self._chain}
        claims = {
            "iss": "test",
            "sub": "test",
            "aud": "test",
            "exp": now + 300,
            "nbf": now - 10,
            "iat": now,
            "jti": uuid.uuid4().hex,
            "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }
        signed = ".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
        return f"{signed}.{_base64url(self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


@pytest.fixture
def tokens() -> Iterator[TokenService]:
    service = TokenService()
    yield service
    service.close()


def test_pulling_from_docker_registry(running: Running, transport: Transport, tokens: TokenService) -> None:
    """Manifest by tag and digest, the proof, the config, ranges of a blob, and what is not there."""
    repo = running.repository(transport, USER)
    digest = Digest.of(MANIFEST)

    manifest = repo.manifest("v1")
    assert (MANIFEST, MANIFEST_TYPE, digest) == (manifest.content, manifest.media_type, manifest.digest)
    assert MANIFEST == repo.manifest(str(digest)).content
    repo.exists(digest)
    assert CONFIG == repo.small_blob(Digest.of(CONFIG), 2, limit=100)
    for first, length in ((0, 1), (1000, 2_000_000), (len(BLOB) - 1, 1), (0, len(BLOB))):
        with repo.open_blob(Digest.of(BLOB), len(BLOB), first, length) as stream:
            content = bytearray(length)
            filled = 0
            while count := stream.readinto(memoryview(content)[filled:]):
                filled += count
        assert BLOB[first : first + length] == content
    assert set(tokens.asked) <= {"repository:a/b:pull"}
    assert len(tokens.asked) <= 1

    with pytest.raises(NotFound, match="MANIFEST_UNKNOWN"):
        repo.manifest("nope")
    with pytest.raises(NotFound):
        repo.exists(Digest.of(b"nothing"))
    with pytest.raises(NotFound):
        repo.open_blob(Digest.of(b"nothing"), 10, 0, 5)


def test_docker_registry_refuses_others(running: Running, transport: Transport, request: pytest.FixtureRequest) -> None:
    """Without a credential, and with a wrong one; both clients say Unauthenticated."""
    if "plain" in request.node.name:
        running.repository(transport, None).manifest("v1")
        return
    for credential in (None, Credential(username="test", password="wrong")):
        repo = running.repository(transport, credential)
        with pytest.raises(Unauthenticated):
            repo.manifest("v1")
        with pytest.raises(Unauthenticated):
            repo.exists(Digest.of(MANIFEST))
        with pytest.raises(Unauthenticated):
            repo.open_blob(Digest.of(BLOB), len(BLOB), 0, 5)
