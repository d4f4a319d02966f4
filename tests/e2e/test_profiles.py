"""A model is fetched in the order in which it was loaded before, here or by somebody else; with the installed command."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import need_program
from tests.support.cli import CommandLine
from tests.support.dockerregistry import DockerRegistry
from tests.support.leaks import Sandbox
from tests.support.models import push_with_oras
from tests.support.registry import FaultyRegistry, Logged
from tests.support.waiting import until
from weightless import units
from weightless.demo.pack import PackedModel

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

MIB = 1024 * 1024
FIRST, SECOND, THIRD = (f"weights/model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))
SIZES = {8 * MIB: FIRST, 8 * MIB + 1: SECOND, 3 * MIB + 4095: THIRD}
LOADED = [THIRD, SECOND, SECOND, FIRST]
"""The order of `load`; by default it is the other way round."""


def load(mounted: Path) -> None:
    """Reads the weights from behind, and the second file's end before its beginning."""
    for arguments in (
        [THIRD],
        [SECOND, "skip=4194304", "iflag=skip_bytes"],
        [SECOND, "count=4194304", "iflag=count_bytes"],
        [FIRST],
    ):
        subprocess.run(
            ["dd", f"if={mounted / arguments[0]}", "of=/dev/null", "bs=1M", "status=none", *arguments[1:]], check=True
        )


def one_after_the_other(sandbox: Sandbox, *options: str) -> CommandLine:
    """A command line with one connection for what nobody waits for, so that the registry sees its order."""
    config = sandbox.root / "weightless.toml"
    config.write_text("[fetch]\nconnections = 3\n")
    return CommandLine(sandbox, ("--config", str(config), *options))


def learned(cli: CommandLine, model: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cli.do("profile", "show", "--json", model).out)
    return found


def fetched(requests: list[Logged], small_model: Path) -> list[tuple[str, int]]:
    """Which large file each request for a blob was for, and its first MiB; what follows in the same file is left out."""
    names = {
        subprocess.run(["sha256sum", small_model / name], capture_output=True, check=True).stdout[:64].decode(): name
        for name in (FIRST, SECOND, THIRD)
    }
    found: list[tuple[str, int]] = []
    for entry in requests:
        name = names.get(entry.request.path.rpartition(":")[2])
        if name is None or entry.request.method != "GET":
            continue
        start = int((entry.request.range or "bytes=0-").removeprefix("bytes=").partition("-")[0]) // MIB
        if not found or found[-1][0] != name or start < found[-1][1]:
            found.append((name, start))
    return found


def test_a_load_is_learned_and_followed(
    sandbox: Sandbox, registry: FaultyRegistry, reference: str, small_model: Path
) -> None:
    """The second time nobody reads, and the registry is asked as the readers of the first time have read."""
    cli = one_after_the_other(sandbox)
    with cli.mounted(reference, "--prefetch", "full"):
        cli.wait_cached()
    by_default = fetched(registry.requests("blob"), small_model)
    assert FIRST == by_default[0][0]
    assert "no load of this artifact is known here" in cli.run("profile", "show", reference).error

    with cli.mounted(reference, "--prefetch", "none", "--native", "off") as mounted:
        load(mounted)
    found = learned(cli, reference)
    assert "learned" == found["source"]
    assert LOADED == [SIZES[found["blobs"][blob]["size"]] for blob, _, _ in found["runs"]]
    shown = cli.do("profile", "show", reference).out
    assert "learned here" in shown
    assert f"{units.size(sum(SIZES))} in 4 runs" in shown
    assert [line.split()[0] for line in shown.splitlines() if ".safetensors" in line] == LOADED

    cli.do("cache", "rm", "--all")
    registry.log.clear()
    with cli.mounted(reference, "--prefetch", "full"):
        cli.wait_cached()
    assert [(THIRD, 0), (SECOND, 4), (SECOND, 0), (FIRST, 0)] == fetched(registry.requests("blob"), small_model)


def test_another_view_and_a_damaged_profile_do_no_harm(
    sandbox: Sandbox, registry: FaultyRegistry, reference: str, packed: PackedModel, small_model: Path
) -> None:
    """A mount that shows less follows what it shows; what is damaged counts as nothing."""
    cli = one_after_the_other(sandbox)
    with cli.mounted(reference, "--prefetch", "none") as mounted:
        load(mounted)
    cli.do("cache", "rm", "--all")
    registry.log.clear()
    with cli.mounted(reference, "--prefetch", "full", "--exclude", f"/{THIRD}") as mounted:
        cli.wait_cached()
        assert (small_model / FIRST).read_bytes() == (mounted / FIRST).read_bytes()
    assert [(SECOND, 4), (SECOND, 0), (FIRST, 0)] == fetched(registry.requests("blob"), small_model)

    cli.do("cache", "rm", "--all")
    for path in (sandbox.cache / "objects" / "profiles").iterdir():
        path.write_bytes(path.read_bytes()[:-5] + b"\0wrong")
    registry.log.clear()
    with cli.mounted(reference, "--prefetch", "full") as mounted:
        cli.wait_cached()
        assert (small_model / FIRST).read_bytes() == (mounted / FIRST).read_bytes()
    assert FIRST == fetched(registry.requests("blob"), small_model)[0][0]


def test_what_somebody_pushed_is_followed_by_a_fresh_node(sandbox: Sandbox, small_model: Path, tmp_path: Path) -> None:
    """Debian's docker-registry keeps the profile; the bytes come from a mirror that writes down what it is asked for.

    The mount does not wait for the profile, so the first request may be of the default order, and no other.
    """
    need_program("docker-registry", "docker-registry")
    (tmp_path / "scratch").mkdir()
    with DockerRegistry(tmp_path / "registry") as registry, FaultyRegistry(rate_bytes_per_s=20e6) as mirror:
        push_with_oras(small_model, registry, "models/small", tmp_path / "scratch")
        model = registry.reference("models/small", "1.0")
        for path in small_model.rglob("*"):
            if path.is_file():
                mirror.add_blob(path.read_bytes())
        certs_dir = sandbox.directory("certs")
        (certs_dir / registry.host).mkdir()
        (certs_dir / registry.host / "hosts.toml").write_text(
            f'server = "http://{registry.host}"\n[host."{mirror.url}"]\n  capabilities = ["pull"]\n'
        )
        cli = one_after_the_other(sandbox, "--certs-dir", str(certs_dir))
        assert "let something load it" in cli.run("profile", "push", model).error
        with cli.mounted(model, "--prefetch", "none") as mounted:
            load(mounted)
        assert " pushed: " in cli.do("profile", "push", model).out
        assert "was there already" in cli.do("profile", "push", model).out

        shutil.rmtree(sandbox.cache)
        mirror.log.clear()
        with cli.mounted(model, "--prefetch", "full") as mounted:
            cli.wait_cached()
            until(lambda: learned(cli, model)["source"] == "pushed", "the profile is known")
            assert (small_model / SECOND).read_bytes() == (mounted / SECOND).read_bytes()
        order = fetched(mirror.requests("blob"), small_model)
        assert [THIRD, SECOND, SECOND, FIRST] == [name for name, _ in order[order[0][0] != THIRD :]]
