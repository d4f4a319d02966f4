"""Shared options: before the command or after it, over the file, over the defaults; and what an error looks like."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from fuse.errors import InvalidRequest, WeightlessError
from fuse.mounting import selinux
from weightless import options
from weightless.app import app
from weightless.options import Given, command, settle


@pytest.fixture(autouse=True)
def _no_config(monkeypatch, tmp_path):
    """The machine's own files say nothing here."""
    path = tmp_path / "empty.toml"
    path.write_text("")
    monkeypatch.setenv("WEIGHTLESS_CONFIG", str(path))


def seen(*arguments):
    """The settings that a command gets for these arguments of the program (`go` is the command)."""
    found = []
    probe = typer.Typer()

    @probe.callback()
    def _main(
        context: typer.Context, cache_dir: options.CacheDir = None, prefetch: options.PrefetchOption = None
    ) -> None:
        options.remember(context, Given(cache_dir=cache_dir, prefetch=prefetch))

    @probe.command()
    @command
    def go(settings: options.Settings) -> None:
        found.append(settings)

    result = CliRunner().invoke(probe, arguments)
    assert not result.exit_code, result.output
    return found[0]


def test_an_option_after_the_command_wins_over_one_before_it(tmp_path):
    """And one that is given in one place only holds."""
    settings = seen("--cache-dir", "/before", "--prefetch", "none", "go", "--cache-dir", "/after")

    assert ("/after", "none") == (str(settings.cache_dir), settings.prefetch)


def test_an_option_wins_over_the_file_and_the_file_over_the_default(tmp_path):
    """0, false and none are values like others."""
    path = tmp_path / "weightless.toml"
    path.write_text('cache-dir = "/file"\nprefetch = "none"\nplain-http = true\n')

    settings = seen("go", "--config", str(path), "--prefetch", "full")

    assert ("/file", "full", True) == (str(settings.cache_dir), settings.prefetch, settings.plain_http)


def test_paths_are_absolute(monkeypatch, tmp_path):
    """A daemon has another working directory than the shell."""
    monkeypatch.chdir(tmp_path)

    assert tmp_path / "cache" == seen("go", "--cache-dir", "cache").cache_dir


def test_without_any_word_the_user_has_a_cache(monkeypatch, tmp_path):
    """Root's lies in /var/lib, another user's where XDG says."""
    monkeypatch.setattr(options.os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    assert tmp_path / "weightless" == settle(Given()).cache_dir


@pytest.mark.parametrize(
    ("raised", "code", "lines"),
    [
        (InvalidRequest("what", where="where", fix="how"), 1, ["error: where: what", "  fix: how"]),
        (InvalidRequest("what"), 1, ["error: what", f"  fix: {InvalidRequest.usual_fix}"]),
        (InvalidRequest("a\x1b[31m\nb", where="w", fix="a\x1b[31m\nb"), 1, ["error: w: a [31m b", "  fix: a [31m b"]),
        (
            PermissionError(13, "Permission denied", "/x"),
            1,
            ["error: /x: Permission denied", f"  fix: {options.REFUSED}"],
        ),
        (KeyboardInterrupt(), 130, ["interrupted"]),
    ],
)
def test_an_error_is_one_line_and_a_second_with_the_fix(raised, code, lines):
    """Never a traceback, never control characters that somebody else wrote."""
    probe = typer.Typer()

    @probe.command()
    @command
    def go(settings: options.Settings) -> None:
        raise raised

    result = CliRunner().invoke(probe, [])

    assert code == result.exit_code
    assert lines == result.stderr.splitlines()


def test_an_unforeseen_error_asks_to_be_reported_and_debug_shows_where_it_came_from():
    """A bug is no reason to show a traceback to whom it tells nothing."""
    probe = typer.Typer()

    @probe.command()
    @command
    def go(settings: options.Settings) -> None:
        raise LookupError("lost")

    result = CliRunner().invoke(probe, [])
    debugged = CliRunner().invoke(probe, ["--log-level", "debug"])

    assert "error: unforeseen: LookupError: lost" == result.stderr.splitlines()[0]
    assert "--log-level debug" in result.stderr
    assert isinstance(debugged.exception, LookupError)


@pytest.mark.parametrize(
    "arguments", [["mount"], ["mount", "a"], ["fly"], ["pull", "a", "--prefetch", "half"], ["--wrong", "status"]]
)
def test_wrong_usage_exits_with_2(arguments):
    """As every program does; nothing is started."""
    assert 2 == CliRunner().invoke(app, arguments).exit_code


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cache-dir", "{}", "cache", "ls", "--json"],
        ["cache", "--cache-dir", "{}", "ls", "--json"],
        ["cache", "ls", "--json", "--cache-dir", "{}"],
    ],
)
def test_a_command_of_two_words_takes_shared_options_at_each_place(monkeypatch, tmp_path, arguments):
    """`weightless cache --cache-dir DIR ls` is as right as the option before `cache` or after `ls`."""
    asked = []
    monkeypatch.setattr("weightless.commands.cache.list_blobs", lambda settings, json: asked.append(settings.cache_dir))

    result = CliRunner().invoke(app, [word.format(tmp_path / "c") for word in arguments])

    assert not result.exit_code, result.output
    assert [tmp_path / "c"] == asked


def test_the_help_shows_no_value_where_an_option_takes_none():
    """A flag that seems to want a word is tried with one, and fails."""
    for words, option in ((["mount"], "--foreground"), (["status"], "--json"), (["pull"], "--plain-http")):
        shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200"}).stdout
        line = next(line for line in shown.splitlines() if option in line)
        assert "<bool>" not in line


@pytest.mark.parametrize("name", ["mount", "unmount", "inspect", "pull", "status", "csi", "node", "demo", "version"])
def test_every_command_has_help_and_the_shared_options(name):
    """`--help` names what the command does and what all have in common."""
    result = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"})

    assert 0 == result.exit_code
    for option in ("--cache-dir", "--certs-dir", "--plain-http", "--prefetch", "--log-level", "--config"):
        assert option in result.stdout


def test_help_does_not_import_what_only_commands_need():
    """An error or a help text must not wait for grpc, trio or httpx."""
    program = (
        "import sys, weightless.app; print([name for name in ('grpc', 'trio', 'httpx', 'pyfuse3', 'structlog') "
        "if name in sys.modules])"
    )

    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert "[]" == result.stdout.strip()


@pytest.mark.parametrize(
    ("label", "words"), [("container_file_t", "no SELinux context"), ("a:b:c:s0", "SELinux is off")]
)
def test_a_label_that_cannot_be_given_is_told_at_once(monkeypatch, label, words):
    """Before anything is started, and by the name of the option."""
    monkeypatch.setattr(selinux, "active", lambda: False)

    with pytest.raises(WeightlessError, match=f"^--selinux-context: .*{words}"):
        options.with_label(settle(Given()), label)


def test_a_label_goes_before_that_of_the_file(monkeypatch, tmp_path):
    """Without it the file's holds."""
    monkeypatch.setattr(selinux, "active", lambda: True)
    path = tmp_path / "weightless.toml"
    path.write_text('[mount]\nnative = "off"\nselinux-context = "a:b:c:s0"\n')
    settings = settle(Given(config=path))

    assert "a:b:c:s0" == options.with_label(settings, None).config.mount.selinux_context
    mount = options.with_label(settings, "a:b:d:s0").config.mount
    assert ("off", "a:b:d:s0") == (mount.native, mount.selinux_context)
