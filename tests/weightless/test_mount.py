"""mount, status and unmount for real: the program, the kernel, and a registry on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from tests.support.commandline import World, poll_until
from weightless.demo.pack import pack_model
from weightless.demo.registry import ModelRegistry

pytestmark = pytest.mark.kernel

FILES = {
    "config.json": b'{"model_type": "tiny"}',
    "model.safetensors": os.urandom(5_000_000),
    "sub/tokenizer.json": b"{}" * 1000,
}


@pytest.fixture
def registry(tmp_path):
    source = tmp_path / "source"
    for name, content in FILES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    with ModelRegistry() as serving:
        pack_model(source).serve(serving, "models/tiny", "v1")
        yield serving


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    (tmp_path / "here").mkdir()
    yield made
    made.clean()


@pytest.fixture
def reference(registry):
    return f"{registry.host}/models/tiny:v1"


def test_mount_returns_when_files_can_be_read_and_unmount_when_nothing_is_left(world, reference):
    """All bytes are right, and no process survives."""
    world.run("mount", reference, "here")

    assert FILES == {name: (world.root / "here" / name).read_bytes() for name in FILES}

    world.run("unmount", "here")
    assert {} == world.processes()
    world.is_empty_soon()
    assert [] == [path.name for path in world.run_dir.iterdir() if path.name.startswith("mount-")]


def test_mount_holds_none_of_the_callers_streams(world, reference):
    """A pipe around the command ends when the command does."""
    started = time.monotonic()
    done = subprocess.run(
        f"{' '.join(world.command('mount', reference, 'here'))} 2>&1 | cat",
        shell=True,
        env=world.environment,
        cwd=world.root,
        capture_output=True,
        timeout=30,
        check=True,
    )

    assert b"mounted" in done.stdout
    assert time.monotonic() - started < 30
    world.run("unmount", "here")


def test_status_tells_what_is_mounted_and_who_serves_it(world, reference):
    """The fields that scripts rely on; every process that is named is alive."""
    assert [] == world.statuses()
    world.run("mount", reference, "here", "--prefetch", "none")

    (status,) = world.statuses()

    assert str(world.root / "here") == status["mountpoint"]
    assert status["reference"].startswith(reference + "@sha256:")
    assert status["reference"].endswith(status["digest"])
    assert "fuse" == status["served_by"]
    assert sum(map(len, FILES.values())) == status["bytes_total"]
    assert 0 <= status["bytes_cached"] < status["bytes_total"]
    for name in ("worker_pid", "keeper_pid", "fetcher_pid"):
        os.kill(status[name], 0)
    assert "here" in world.run("status").stdout
    world.run("unmount", "here")
    assert [] == world.statuses()


def test_files_can_be_hidden(world, reference):
    """By pattern and by being weights."""
    world.run("mount", reference, "here", "--exclude", "sub/", "--exclude-weights")

    assert ["config.json"] == os.listdir(world.root / "here")
    world.run("unmount", "here")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("file", "not a directory"),
        ("missing", "No such file"),
        ("missing/deep", "No such file"),
        ("here", "mounted there"),
    ],
)
def test_a_place_that_cannot_be_mounted_on_is_refused_with_a_reason(world, reference, place, words):
    """A file, nothing, and a mount; what was there before stays as it was."""
    (world.root / "file").write_text("mine")
    if place == "here":
        world.run("mount", reference, "here")

    refused = world.run("mount", reference, place, code=1)

    first, second = refused.stderr.splitlines()
    assert first.startswith(f"error: {place}: ") or f"/{place}: " in first
    assert words in first
    assert second.startswith("  fix: ")
    assert "mine" == (world.root / "file").read_text()
    if place == "here":
        world.run("unmount", "here")
    world.is_empty_soon()


@pytest.mark.parametrize(
    ("path", "words"),
    [("models/none:v1", "models/none"), ("models/tiny:v9", "v9"), ("Models:v1", "not a repository name")],
)
def test_a_reference_that_does_not_lead_to_a_model_leaves_nothing_behind(world, registry, path, words):
    """The error names it, the exit code is 1, and no process or mount is left."""
    refused = world.run("mount", f"{registry.host}/{path}", "here", code=1)

    assert refused.stderr.startswith("error: ")
    assert words in refused.stderr
    assert "Traceback" not in refused.stderr
    world.is_empty_soon()


def test_a_busy_mount_is_not_unmounted_unless_lazily(world, reference):
    """The error names --lazy; the mount goes on; lazily it is gone from the tree at once."""
    world.run("mount", reference, "here")
    file = (world.root / "here" / "config.json").open("rb")
    with file:
        refused = world.run("unmount", "here", code=1)
        assert "in use" in refused.stderr
        assert "--lazy" in refused.stderr
        assert FILES["config.json"] == file.read()
        world.run("unmount", "--lazy", "here")
        assert [] == world.mounts()
    world.is_empty_soon()


def test_unmounting_what_is_not_ours_is_refused(world):
    """Nothing mounted, and a mount of something else."""
    assert "nothing is mounted" in world.run("unmount", "here", code=1).stderr
    assert "not of weightless" in world.run("unmount", "/proc", code=1).stderr


def test_two_mounts_share_a_fetcher_and_unmounting_one_leaves_the_other(world, reference):
    """The second mount finds everything in the cache that the first has fetched."""
    (world.root / "there").mkdir()
    world.run("mount", reference, "here")
    world.run("mount", "--native", "off", reference, "there")

    assert 1 == len({status["fetcher_pid"] for status in world.statuses()})
    world.run("unmount", "here")
    assert FILES["model.safetensors"] == (world.root / "there" / "model.safetensors").read_bytes()
    world.run("unmount", "there")
    world.is_empty_soon()


def test_a_foreground_mount_unmounts_on_ctrl_c(world, reference):
    """And is mounted until then."""
    process = world.start("mount", "--foreground", reference, "here")
    with process:
        try:
            poll_until(world.mounts)
            poll_until(lambda: len(world.statuses()) == 1)
            assert FILES["config.json"] == (world.root / "here" / "config.json").read_bytes()
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
    assert 0 == process.returncode
    world.is_empty_soon()


def test_umount_by_somebody_else_ends_the_holder(world, reference):
    """As with any FUSE file system."""
    world.run("mount", reference, "here")

    subprocess.run(["umount", str(world.root / "here")], check=True)

    world.is_empty_soon()


def holder_killed(world, reference):
    """A mount whose holder was killed; its status before. The keeper starts another within a moment."""
    world.run("mount", reference, "here")
    (status,) = world.statuses()
    os.kill(status["holder_pid"], signal.SIGKILL)
    return status


def served_by_another(world, status):
    """The status, once a holder, keeper and worker serve that are not those of before."""
    found = {}

    def changed():
        for now in world.statuses():
            found.update(now)
            return (
                now["worker_pid"]
                and now["holder_pid"] != status["holder_pid"]
                and now["condition"]["state"] == "healthy"
            )
        return False

    poll_until(changed, lambda: f"nobody else serves it: {found}", limit_s=30)
    return found


def test_holder_and_keeper_start_each_other_again(world, reference):
    """Each is killed in turn, twice; a reader that came meanwhile gets the right bytes; nothing of it is in an argument."""
    before = holder_killed(world, reference)
    reader = subprocess.Popen(["cat", world.root / "here" / "model.safetensors"], stdout=subprocess.PIPE)
    with reader:
        assert FILES["model.safetensors"] == reader.communicate(timeout=30)[0]
    after = served_by_another(world, before)
    assert before["keeper_pid"] == after["keeper_pid"]
    os.kill(after["keeper_pid"], signal.SIGKILL)
    poll_until(lambda: world.statuses()[0]["keeper_pid"] not in (None, after["keeper_pid"]))
    assert "keeper 1" in world.run("status").stdout
    os.kill(after["holder_pid"], signal.SIGKILL)
    last = served_by_another(world, after)
    assert not any(reference in command for command in world.processes().values())
    assert world.run("status").stdout.count("here") == 1
    assert 1 == len({last["holder_pid"], *(s["holder_pid"] for s in world.statuses())})
    world.run("unmount", "here")
    world.is_empty_soon()
    assert [] == [path.name for path in world.run_dir.iterdir() if path.name.startswith("mount-")]


def test_mounting_anew_where_a_holder_was_killed_does_no_harm(world, reference):
    """Whoever is quicker, the command or the successor that the keeper starts: it is served once, and the words say which."""
    before = holder_killed(world, reference)
    done = subprocess.run(
        world.command("mount", reference, "here"),
        env=world.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=world.root,
    )
    assert "served again" in done.stdout or "mounted there already" in done.stderr, done
    served_by_another(world, before)
    assert FILES["config.json"] == (world.root / "here" / "config.json").read_bytes()
    world.run("unmount", "here")
    world.is_empty_soon()
    assert [] == list(world.run_dir.glob("mount-*.log"))


def test_a_mount_whose_holder_was_killed_can_be_unmounted(world, reference):
    """The keeper ends as well."""
    holder_killed(world, reference)

    world.run("unmount", "here")

    world.is_empty_soon()


def test_an_interrupted_mount_leaves_nothing(world):
    """Ctrl-C while the registry does not answer."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = world.start("mount", f"127.0.0.1:{silent.getsockname()[1]}/a/b:v1", "here")
        with process:
            connection, _ = silent.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                output, _ = process.communicate(timeout=30)
    assert 130 == process.returncode, output
    world.is_empty_soon()


def test_mount_tells_nobody_when_there_is_no_stream_to_tell(world, reference):
    """A service manager may start it with its streams closed: what counts is the exit code."""
    command = [*world.command("mount", reference, "here")]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command],
        env=world.environment,
        cwd=world.root,
        timeout=60,
        check=False,
    )
    assert 0 == done.returncode
    assert FILES["config.json"] == (world.root / "here" / "config.json").read_bytes()
    world.run("unmount", "here")
    world.is_empty_soon()
