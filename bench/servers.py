"""Servers that are a process of their own, so that they share no interpreter lock with the benchmark: nginx for full speed,
with TLS if wanted, our own registry for a rate that all connections share.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fuse.artifact.digest import Digest
from weightless.demo.pack import PackedModel, pack_model
from weightless.demo.registry import ModelRegistry
from weightless.demo.sources import FileSource

REPOSITORY = "bench/model"
_PIECE_BYTES = 16 * 1024 * 1024

_NGINX = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections 512; }}
http {{
  access_log off;
  sendfile on;
  sendfile_max_chunk 1m;
  tcp_nodelay on;
  keepalive_requests 100000;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  default_type application/octet-stream;
  server {{
    listen 127.0.0.1:{port}{tls};
    root {directory}/root;
    location ~ /manifests/ {{ default_type {manifest_type}; }}
  }}
}}
"""

_TLS = """ ssl;
    ssl_certificate {directory}/server.pem;
    ssl_certificate_key {directory}/server.key"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where a model is served, and how to get there."""

    host: str
    """`host:port`."""
    certs_dir: Path | None = None
    """Where hosts.toml names the authority of its certificate; None without TLS."""

    @property
    def reference(self) -> str:
        return f"{self.host}/{REPOSITORY}:v1"

    @property
    def plugin_arguments(self) -> list[str]:
        return ["--certs-dir", str(self.certs_dir)] if self.certs_dir else ["--plain-http"]

    def curl(self, digest: Digest, output: Path | str) -> list[str]:
        """The command that brings one blob to a file."""
        scheme = "https" if self.certs_dir else "http"
        trust = ["--cacert", str(self.certs_dir / "ca.pem")] if self.certs_dir else []
        return ["curl", "-sf", *trust, "-o", str(output), f"{scheme}://{self.host}{blob_path(digest)}"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CountingServer(Server):
    process: subprocess.Popen[str]

    def bytes_sent(self) -> int:
        """Of blobs, so far."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(json.loads(self.process.stdout.readline())["bytes_sent"])


def blob_path(digest: Digest) -> str:
    return f"/v2/{REPOSITORY}/blobs/{digest}"


@contextmanager
def nginx(directory: Path, packed: PackedModel, *, tls: bool = False) -> Iterator[Server]:
    """An nginx that serves `packed` as static files, from a new directory."""
    root = directory / "root" / "v2" / REPOSITORY
    (root / "blobs").mkdir(parents=True)
    (root / "manifests").mkdir()
    for digest, source in packed.blobs.items():
        path = root / "blobs" / str(digest)
        if isinstance(source, FileSource):
            path.symlink_to(source.path)
        else:
            with path.open("wb") as file:
                for at in range(0, source.size, _PIECE_BYTES):
                    file.write(source.read(at, min(_PIECE_BYTES, source.size - at)))
                file.flush()
                os.fsync(file.fileno())  # no writeback disturbs what follows
    for target in ("v1", str(packed.digest)):
        (root / "manifests" / target).write_bytes(packed.manifest)
    port = _free_port()
    host = f"127.0.0.1:{port}"
    certs_dir = _certificate(directory, host) if tls else None
    config = directory / "nginx.conf"
    config.write_text(
        _NGINX.format(
            directory=directory,
            port=port,
            tls=_TLS.format(directory=directory) if tls else "",
            manifest_type=packed.media_type,
        )
    )
    for path in (directory, *directory.parents[:1]):
        path.chmod(0o755)  # nginx has workers without root
    process = subprocess.Popen(
        ["nginx", "-c", str(config), "-p", str(directory)], stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        _wait_for(port)
        yield Server(host=host, certs_dir=certs_dir)
    finally:
        process.terminate()
        process.wait()


@contextmanager
def limited(source: Path, rate_bytes_per_s: int) -> Iterator[CountingServer]:
    """Our own registry, serving the files of `source` at a rate that its connections share; 0 is as fast as it can."""
    command = [sys.executable, "-m", "bench.servers", str(source), str(rate_bytes_per_s)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        yield CountingServer(host=str(json.loads(process.stdout.readline())["host"]), process=process)
    finally:
        process.kill()
        process.communicate()


def _certificate(directory: Path, host: str) -> Path:
    """A certificate that vouches for itself, and the hosts.toml that trusts it."""
    certs_dir = directory / "certs"
    (certs_dir / host).mkdir(parents=True)
    authority = certs_dir / "ca.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", "/CN=bench", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"),
            *("-keyout", str(directory / "server.key"), "-out", str(authority)),
        ],
        check=True,
        capture_output=True,
    )
    (directory / "server.pem").symlink_to(authority)
    (certs_dir / host / "hosts.toml").write_text(f'server = "https://{host}"\nca = "{authority}"\n')
    return certs_dir


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def main() -> None:
    source, rate = Path(sys.argv[1]), int(sys.argv[2])
    with ModelRegistry(rate_bytes_per_s=rate or None) as registry:
        pack_model(source).serve(registry, REPOSITORY, "v1")
        print(json.dumps({"host": registry.host}), flush=True)
        for _ in sys.stdin:  # The parent's end of the pipe closes when it is done, or dead.
            print(json.dumps({"bytes_sent": registry.statistics().bytes_sent}), flush=True)


if __name__ == "__main__":
    main()
