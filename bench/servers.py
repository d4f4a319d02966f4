"""Servers that are a process of their own, so that they share no interpreter lock with the benchmark: nginx for full speed,
our own registry for a rate that all connections share.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weightless.demo.pack import PackedModel, pack_model
from weightless.demo.registry import ModelRegistry

REPOSITORY = "bench/model"

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
    listen 127.0.0.1:{port};
    root {directory}/root;
    location ~ /manifests/ {{ default_type {manifest_type}; }}
  }}
}}
"""


@contextmanager
def nginx(directory: Path, packed: PackedModel) -> Iterator[str]:
    """`host:port` of an nginx that serves `packed` as static files. Needs nginx."""
    root = directory / "root" / "v2" / REPOSITORY
    (root / "blobs").mkdir(parents=True)
    (root / "manifests").mkdir()
    for digest, source in packed.blobs.items():
        path = root / "blobs" / str(digest)
        path.write_bytes(b"")
        with path.open("wb") as file:
            for offset in range(0, source.size, 1 << 24):
                file.write(source.read(offset, min(1 << 24, source.size - offset)))
    for target in ("v1", str(packed.digest)):
        (root / "manifests" / target).write_bytes(packed.manifest)
    port = _free_port()
    config = directory / "nginx.conf"
    config.write_text(_NGINX.format(directory=directory, port=port, manifest_type=packed.media_type))
    for path in (directory, *directory.parents[:1]):
        path.chmod(0o755)  # nginx has workers without root
    process = subprocess.Popen(["nginx", "-c", str(config), "-p", str(directory)], stderr=subprocess.DEVNULL)
    try:
        _wait_for(port)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def limited(source: Path, rate_bytes_per_s: int) -> Iterator[str]:
    """`host:port` of our own registry, serving the files of `source` at a rate that its connections share."""
    command = [sys.executable, "-m", "bench.servers", str(source), str(rate_bytes_per_s)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield str(json.loads(process.stdout.readline())["host"])
    finally:
        process.terminate()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def nginx_is_there() -> bool:
    return shutil.which("nginx") is not None


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
        sys.stdin.read()  # The parent's end of the pipe closes when it is done, or dead.


if __name__ == "__main__":
    main()
