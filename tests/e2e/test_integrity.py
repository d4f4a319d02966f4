"""Bytes are proven before they are read: strict mounts, and chunk indexes over mirrors that lie, with the installed command."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse.artifact.digest import Digest
from tests.conftest import need_program
from tests.support.cli import CommandLine
from tests.support.dockerregistry import Certificates, DockerRegistry
from tests.support.leaks import Sandbox
from tests.support.models import push_with_oras
from tests.support.pushregistry import PushRegistry
from tests.support.registry import FaultyRegistry
from tests.support.waiting import until
from weightless.demo.pack import PackedModel

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

MIB = 1024 * 1024
SECOND = "weights/model-00002-of-00003.safetensors"
"""8 MiB and one byte: three chunks, the last of one byte."""


class Reading:
    """dd of the first bytes of a file, and whether it has come back."""

    def __init__(self, path: Path, count: int = 4096) -> None:
        self.process = subprocess.Popen(
            ["dd", f"if={path}", f"bs={count}", "count=1", "status=none"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    @property
    def waits(self) -> bool:
        return self.process.poll() is None

    def end(self) -> tuple[int, bytes, bytes]:
        try:
            out, error = self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return self.process.returncode, out, error


@pytest.fixture
def origin(packed: PackedModel) -> Iterator[PushRegistry]:
    with PushRegistry() as registry:
        packed.serve(registry, "models/small", "1.0")
        yield registry


@pytest.fixture
def model(origin: PushRegistry) -> str:
    return f"{origin.host}/models/small:1.0"


def lying(packed: PackedModel, mirror: FaultyRegistry, small_model: Path) -> None:
    """A mirror whose copies of all large files are wrong somewhere."""
    packed.serve(mirror, "models/small", "1.0")
    for path in small_model.rglob("*.safetensors"):
        content = path.read_bytes()
        wrong = content[: len(content) // 2] + b"\0wrong" + content[len(content) // 2 + 6 :]
        mirror.add_blob(wrong, digest=Digest.of(content))


def write_hosts(sandbox: Sandbox, host: str, mirror: str) -> str:
    certs_dir = sandbox.directory("certs")
    place = certs_dir / host
    place.mkdir()
    (place / "hosts.toml").write_text(
        f'server = "http://{host}"\n[host."{mirror}"]\n  capabilities = ["pull", "resolve"]\n'
    )
    return str(certs_dir)


def fetched(cli: CommandLine) -> int:
    return int(cli.status()[0]["bytes_cached"])


def test_a_strict_mount_shows_no_byte_before_the_last_has_come(
    cli: CommandLine, origin: PushRegistry, model: str, small_model: Path
) -> None:
    """With nothing prefetched: opening and stat are instant, the first read has the whole file fetched, and waits for it."""
    with cli.mounted(model, "--prefetch", "none", "--verify", "strict") as mounted:
        origin.script("blob", f"cut@{8 * MIB} hang", forever=True)
        path = mounted / SECOND
        assert path.stat().st_size == 8 * MIB + 1
        reading = Reading(path)
        until(lambda: fetched(cli) >= 8 * MIB, "all but the last byte is there")
        assert reading.waits
        origin.clear_scripts()
        origin.release()

        assert (0, (small_model / SECOND).read_bytes()[:4096], b"") == reading.end()
        assert (small_model / SECOND).read_bytes() == path.read_bytes()


def test_a_strict_mount_shows_nothing_of_what_does_not_match(
    cli: CommandLine, origin: PushRegistry, model: str, small_model: Path
) -> None:
    """One wrong byte at the end, and the beginning is not served either."""
    content = (small_model / SECOND).read_bytes()
    origin.add_blob(content[:-1] + b"\xff", digest=Digest.of(content))
    with cli.mounted(model, "--prefetch", "none", "--verify", "strict") as mounted:
        code, out, error = Reading(mounted / SECOND).end()

        assert (1, b"") == (code, out)
        assert b"Input/output error" in error


def test_a_lazy_and_a_strict_mount_share_no_pages(
    cli: CommandLine, origin: PushRegistry, model: str, small_model: Path
) -> None:
    """What a lazy mount has read already is not thereby readable for the strict one."""
    with (
        cli.mounted(model, "--prefetch", "none", name="lazy") as lazy,
        cli.mounted(model, "--prefetch", "none", "--verify", "strict", name="strict") as strict,
    ):
        origin.script("blob", f"ok cut@{7 * MIB} hang", forever=True)
        assert (small_model / SECOND).read_bytes()[:4096] == Reading(lazy / SECOND).end()[1]
        reading = Reading(strict / SECOND)
        until(lambda: max(int(status["bytes_cached"]) for status in cli.status()) >= 8 * MIB, "all but the last byte")
        assert reading.waits
        origin.clear_scripts()
        origin.release()

        assert 0 == reading.end()[0]


def test_a_strict_mount_serves_chunks_that_an_authentic_index_proves(
    sandbox: Sandbox, packed: PackedModel, small_model: Path
) -> None:
    """Over TLS a chunk index is as good as the whole: the beginning is readable while the end has not come."""
    certificates = Certificates.create(sandbox.root / "certificates")
    with PushRegistry(tls=certificates.server_context()) as origin:
        packed.serve(origin, "models/small", "1.0")
        model = f"{origin.host}/models/small:1.0"
        certs_dir = sandbox.directory("certs")
        (certs_dir / origin.host).mkdir()
        (certs_dir / origin.host / "hosts.toml").write_text(
            f'server = "https://{origin.host}"\nca = "{certificates.ca}"\n'
        )
        cli = CommandLine(sandbox, ("--certs-dir", str(certs_dir)))
        cli.do("index", model)
        cli.do("cache", "rm", "--all")
        for path in (sandbox.cache / "objects" / "chunks").iterdir():
            path.unlink()  # that there was none is believed for a while
        with cli.mounted(model, "--prefetch", "none", "--verify", "strict") as mounted:
            origin.script("blob", "ok hang", forever=True)
            code, out, _ = Reading(mounted / SECOND).end()
            assert (0, (small_model / SECOND).read_bytes()[:4096]) == (code, out)
            assert 4 * MIB == fetched(cli)
            origin.clear_scripts()
            origin.release()


def test_a_mirror_that_lies_is_uncovered_by_the_index(
    sandbox: Sandbox, origin: PushRegistry, packed: PackedModel, model: str, small_model: Path
) -> None:
    """Every sum is right, though the fetcher is killed in the middle of verifying; without the index they would not be."""
    with FaultyRegistry(rate_bytes_per_s=4e6) as mirror:
        lying(packed, mirror, small_model)
        straight = CommandLine(sandbox)
        straight.do("index", model)
        straight.do("cache", "rm", "--all")
        for path in (sandbox.cache / "objects" / "chunks").iterdir():
            path.unlink()
        cli = CommandLine(sandbox, ("--certs-dir", write_hosts(sandbox, origin.host, mirror.url)))
        with cli.mounted(model, "--prefetch", "full") as mounted:
            names = sorted(str(path.relative_to(small_model)) for path in small_model.rglob("*.safetensors"))
            reader = subprocess.Popen(
                ["sh", "-c", 'cd "$0" && exec sha256sum "$@"', mounted, *names],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            until(lambda: mirror.statistics().bytes_sent > 5 * MIB, "bytes come")
            os.kill(cli.status()[0]["fetcher_pid"], signal.SIGKILL)
            output, _ = reader.communicate(timeout=90)

        sums = [f"{hashlib.sha256((small_model / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
        assert "".join(sums) == output


def test_what_oras_pushed_is_proven(sandbox: Sandbox, small_model: Path, tmp_path: Path) -> None:
    """Debian's docker-registry, without the referrers API, behind a mirror that lies."""
    need_program("docker-registry", "docker-registry")
    (tmp_path / "one").mkdir()
    content = (small_model / SECOND).read_bytes()
    (tmp_path / "one" / "model.safetensors").write_bytes(content)
    (tmp_path / "scratch").mkdir()
    with DockerRegistry(tmp_path / "registry") as registry, FaultyRegistry() as mirror:
        push_with_oras(tmp_path / "one", registry, "models/one", tmp_path / "scratch")
        mirror.add_blob(b"wrong" + content[5:], digest=Digest.of(content))
        model = registry.reference("models/one", "1.0")
        straight = CommandLine(sandbox)
        straight.do("index", model)
        straight.do("cache", "rm", "--all")
        for path in (sandbox.cache / "objects" / "chunks").iterdir():
            path.unlink()
        cli = CommandLine(sandbox, ("--certs-dir", write_hosts(sandbox, registry.host, mirror.url)))
        with cli.mounted(model, "--prefetch", "none") as mounted:
            assert content[:4096] == Reading(mounted / "model.safetensors").end()[1]
            assert content == (mounted / "model.safetensors").read_bytes()
        assert mirror.statistics().bytes_sent
