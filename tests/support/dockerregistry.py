"""Debian's docker-registry as a process: plain, TLS with Basic (htpasswd), TLS with tokens. A registry that is not ours.

`DockerRegistry` is the process; `TokenService` issues the tokens that it accepts: JWT (ES256, the certificate in `x5c`), as
Docker's token specification says.
"""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

import trustme
import yaml
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate

from tests.support.ports import free_port
from tests.support.waiting import until

USER: Final = "reader"
PASSWORD: Final = "canary-7f3kq9-password"
# bcrypt of PASSWORD at the lowest cost; the only hash that docker-registry accepts, and one that Python's library cannot make.
_HTPASSWD: Final = "reader:$2y$04$abcdefghijklmnopqrstuuVfoJa2dxsAVkdt9euUhVvTLNhPv5a/W\n"
_SERVICE: Final = "weightless-test-registry"
_ISSUER: Final = "weightless-test-issuer"


@dataclass(frozen=True, slots=True)
class Certificates:
    """A certification authority, and what it issued for 127.0.0.1 and localhost, or for other names."""

    directory: Path
    authority: trustme.CA

    @classmethod
    def create(cls, directory: Path, *names: str) -> Certificates:
        directory.mkdir(parents=True)
        authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
        issued = authority.issue_cert(*(names or ("127.0.0.1", "localhost")), key_type=trustme.KeyType.ECDSA)
        # Apart from the keys: skopeo takes a key beside it for a client's.
        (directory / "trusted").mkdir()
        authority.cert_pem.write_to_path(str(directory / "trusted" / "ca.crt"))
        issued.private_key_pem.write_to_path(str(directory / "server.key"))
        for number, pem in enumerate(issued.cert_chain_pems):
            pem.write_to_path(str(directory / "server.crt"), append=number > 0)
        return cls(directory, authority)

    @property
    def ca(self) -> Path:
        return self.directory / "trusted" / "ca.crt"

    def server_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.directory / "server.crt", self.directory / "server.key")
        return context

    def client_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca))


class TokenService:
    """Issues tokens to `USER` for whatever is asked, over HTTPS; counts them. A subclass may know others."""

    def __init__(self, certificates: Certificates, *, lifetime_s: int = 300, address: str = "127.0.0.1") -> None:
        self.lifetime_s = lifetime_s
        self.issued = 0
        signer = certificates.authority.issue_cert("token-signer", key_type=trustme.KeyType.ECDSA)
        key = load_pem_private_key(signer.private_key_pem.bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key
        certificate = load_pem_x509_certificate(signer.cert_chain_pems[0].bytes())
        self._chain = base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()
        self._server = ThreadingHTTPServer((address, 0), self._handler())
        self._server.daemon_threads = True
        self._server.socket = certificates.server_context().wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def realm(self) -> str:
        host, port, *_ = self._server.server_address
        return f"https://{host!s}:{port}/token"

    def granted(self, user: str, password: str, scopes: list[str]) -> list[str] | None:
        """What of `scopes` is for this user; None if the password is wrong."""
        return scopes if (user, password) == (USER, PASSWORD) else None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def token(self, scopes: list[str]) -> str:
        now = int(time.time())
        access = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        claims = {
            "iss": _ISSUER,
            "sub": USER,
            "aud": _SERVICE,
            "exp": now + self.lifetime_s,
            "nbf": now - 10,
            "iat": now,
            "jti": str(self.issued),
            "access": access,
        }
        header = {"typ": "JWT", "alg": "ES256", "x5c": [self._chain]}
        signed = f"{_base64url(json.dumps(header).encode())}.{_base64url(json.dumps(claims).encode())}"
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        self.issued += 1
        return f"{signed}.{_base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                scopes = " ".join(parse_qs(urlsplit(self.path).query).get("scope", [])).split()
                _, _, encoded = self.headers.get("Authorization", "").partition(" ")
                user, _, password = base64.b64decode(encoded).decode().partition(":")
                granted = service.granted(user, password, scopes)
                if granted is None:
                    self._reply(401, {"details": "incorrect username or password"})
                    return
                self._reply(200, {"token": service.token(granted), "expires_in": service.lifetime_s})

            def do_POST(self) -> None:
                # Clients try OAuth2 first and fall back to GET on 404 (and so do we not: passwords go by GET).
                self._reply(404, {})

            def _reply(self, status: int, content: dict[str, Any]) -> None:
                body = json.dumps(content).encode()
                self.send_response_only(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        return Handler


class DockerRegistry:
    """The process. With `certificates` it speaks TLS; with `htpasswd` Basic, with `tokens` Bearer authentication."""

    def __init__(
        self,
        directory: Path,
        *,
        certificates: Certificates | None = None,
        htpasswd: bool = False,
        tokens: TokenService | None = None,
        address: str = "127.0.0.1",
        storage: Path | None = None,
        access_log: bool = False,
    ) -> None:
        """`storage`: another registry's, to serve the same."""
        self.directory = directory
        self.storage = storage or directory / "storage"
        self.certificates = certificates
        self.address = address
        self.port = free_port()
        self._protected = htpasswd or tokens is not None
        directory.mkdir(parents=True)
        http: dict[str, Any] = {"addr": self.host, "secret": "irrelevant"}
        if certificates is not None:
            http["tls"] = {
                "certificate": str(certificates.directory / "server.crt"),
                "key": str(certificates.directory / "server.key"),
            }
        config: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": not access_log}},
            "storage": {"filesystem": {"rootdirectory": str(self.storage)}},
            "http": http,
        }
        if htpasswd:
            (directory / "htpasswd").write_text(_HTPASSWD)
            config["auth"] = {"htpasswd": {"realm": "test", "path": str(directory / "htpasswd")}}
        if tokens is not None:
            assert certificates is not None
            config["auth"] = {
                "token": {
                    "realm": tokens.realm,
                    "service": _SERVICE,
                    "issuer": _ISSUER,
                    "rootcertbundle": str(certificates.ca),
                }
            }
        self._config = directory / "config.yml"
        self._config.write_text(yaml.safe_dump(config))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return f"{self.address}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.certificates else 'http'}://{self.host}"

    def reference(self, repository: str, tag: str) -> str:
        return f"{self.host}/{repository}:{tag}"

    def skopeo_options(self, side: str) -> list[str]:
        """What skopeo needs to reach it as `src` or `dest`."""
        options = [f"--{side}-tls-verify={'true' if self.certificates else 'false'}"]
        if self.certificates is not None:
            options.append(f"--{side}-cert-dir={self.certificates.ca.parent}")
        if self._protected:
            options.append(f"--{side}-creds={USER}:{PASSWORD}")
        return options

    def write_hosts_toml(self, certs_dir: Path) -> None:
        """Tells containerd-style configuration about this registry's certificate."""
        place = certs_dir / self.host
        place.mkdir(parents=True)
        ca = f'ca = "{self.certificates.ca}"\n' if self.certificates else ""
        (place / "hosts.toml").write_text(f'server = "{self.url}"\n[host."{self.url}"]\n  {ca}')

    def __enter__(self) -> Self:
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", str(self._config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        until(self._answers, f"docker-registry answers at {self.url}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "log").read_text()
        context = self.certificates.client_context() if self.certificates else None
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), *([urllib.request.HTTPSHandler(context=context)] if context else [])
        )
        try:
            with opener.open(f"{self.url}/v2/", timeout=2):
                return True
        except urllib.error.HTTPError as error:
            with error:
                return error.code == 401
        except OSError:
            return False


def docker_config(directory: Path, *hosts: str, user: str = USER, password: str = PASSWORD) -> None:
    """What `docker login` writes."""
    auth = base64.b64encode(f"{user}:{password}".encode()).decode()
    content = json.dumps({"auths": {host: {"auth": auth} for host in hosts}})
    (directory / "config.json").write_text(content)


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
