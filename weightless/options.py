"""The options that every command shares, and how a command gets them: before the command or after it, from a file, by default.

A command is written as a function of `Settings` and its own parameters; `command` gives typer a function that has the shared
options as well, and turns our errors into lines and exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from fuse.errors import WeightlessError
from fuse.mounting import selinux
from fuse.spec import Prefetch, Verify
from weightless import console
from weightless.config import Config, LogLevel, load

_PANEL: Final = "Shared options"
FLAG: Final = ""
"""The metavar of an option without a value; left to typer, the help would show one."""
REFUSED: Final = "see that it is there, has room, and that this user may use it"
"""What to do where the system refuses something and none of our errors says more."""
_CONTAINERD_CERTS: Final = Path("/etc/containerd/certs.d")

PrefetchChoice = StrEnum("PrefetchChoice", ["full", "none"])
ModeChoice = StrEnum("ModeChoice", ["node", "controller", "all"])
WithoutResendChoice = StrEnum("WithoutResendChoice", ["wait", "abort"])
NativeChoice = StrEnum("NativeChoice", ["auto", "off"])
VerifyChoice = StrEnum("VerifyChoice", ["lazy", "strict"])
LevelChoice = StrEnum("LevelChoice", ["debug", "info", "warning", "error"])

CacheDir = Annotated[
    Path | None,
    typer.Option(
        help="Where fetched bytes are kept and shared by all mounts.", rich_help_panel=_PANEL, show_default=False
    ),
]
CertsDir = Annotated[
    Path | None,
    typer.Option(
        help="Directories with hosts.toml files: mirrors, certificates, headers (containerd's format).",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
PlainHttp = Annotated[
    bool | None,
    typer.Option(
        "--plain-http",
        metavar=FLAG,
        help="Speak HTTP, not HTTPS, with the reference's registry.",
        rich_help_panel=_PANEL,
    ),
]
PrefetchOption = Annotated[
    PrefetchChoice | None,
    typer.Option(
        help="Fetch the rest in the background (full), or only what is read (none).",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
VerifyOption = Annotated[
    VerifyChoice | None,
    typer.Option(
        help="Serve bytes as they come (lazy), or none that is not proven yet (strict).",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
NativeOption = Annotated[
    NativeChoice | None,
    typer.Option(
        help="Let the kernel alone show what is whole in the cache (auto; needs root), or serve it by FUSE all the same (off).",
        show_default=False,
    ),
]
LabelOption = Annotated[
    str | None,
    typer.Option(
        "--selinux-context",
        metavar="CONTEXT",
        help="The SELinux context of all files, so that containers may read them: system_u:object_r:container_file_t:s0.",
        show_default=False,
    ),
]
LogLevelOption = Annotated[
    LevelChoice | None,
    typer.Option(help="How much to log; debug shows tracebacks.", rich_help_panel=_PANEL, show_default=False),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", help="A TOML file with these options (weightless.toml).", rich_help_panel=_PANEL, metavar="FILE"
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The shared options as they were given; None where they were not."""

    cache_dir: CacheDir = None
    certs_dir: CertsDir = None
    plain_http: PlainHttp = None
    prefetch: PrefetchOption = None
    verify: VerifyOption = None
    log_level: LogLevelOption = None
    config: ConfigFile = None

    def over(self, earlier: Given) -> Given:
        """These, and where these say nothing, `earlier`."""
        merged: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            merged[item.name] = getattr(earlier, item.name) if value is None else value
        return Given(**merged)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What holds, from options, file and defaults. Travels to the holder of a mount as JSON."""

    cache_path: str
    certs_path: str | None
    plain_http: bool = False
    prefetch: Prefetch = "full"
    verify: Verify = "lazy"
    log_level: LogLevel = "warning"
    log_level_given: bool = False
    config: Config = Config()

    @property
    def cache_dir(self) -> Path:
        return Path(self.cache_path)

    @property
    def certs_dir(self) -> Path | None:
        return Path(self.certs_path) if self.certs_path else None


def settle(given: Given, *, without_file: bool = False) -> Settings:
    """Raises InvalidConfig. `without_file`: as if there was no configuration file."""
    config = Config() if without_file else load(given.config)

    def directory(option: Path | None, configured: str | None) -> Path | None:
        chosen = option or (Path(configured) if configured else None)
        return chosen.expanduser().absolute() if chosen else None

    prefetch: Prefetch = config.prefetch or "full"
    if given.prefetch is not None:
        prefetch = "none" if given.prefetch.value == "none" else "full"
    verify: Verify = config.verify or "lazy"
    if given.verify is not None:
        verify = "strict" if given.verify.value == "strict" else "lazy"
    level: LogLevel | None = config.log_level
    if given.log_level is not None:
        level = msgspec.convert(given.log_level.value, LogLevel)
    certs_dir = directory(given.certs_dir, config.certs_dir)
    if certs_dir is None and _CONTAINERD_CERTS.is_dir():
        certs_dir = _CONTAINERD_CERTS
    return Settings(
        cache_path=str(directory(given.cache_dir, config.cache_dir) or default_cache_dir()),
        certs_path=str(certs_dir) if certs_dir else None,
        plain_http=bool(config.plain_http if given.plain_http is None else given.plain_http),
        prefetch=prefetch,
        verify=verify,
        log_level=level or "warning",
        log_level_given=level is not None,
        config=config,
    )


def with_native(settings: Settings, choice: NativeOption) -> Settings:
    """The settings with a command's own option `--native`, where it was given."""
    if choice is None:
        return settings
    mount = msgspec.structs.replace(settings.config.mount, native="off" if choice.value == "off" else "auto")
    return msgspec.structs.replace(settings, config=msgspec.structs.replace(settings.config, mount=mount))


def with_label(settings: Settings, label: LabelOption) -> Settings:
    """The settings with a command's own option `--selinux-context`. Raises InvalidRequest, and Missing where SELinux is off."""
    if label is None:
        return settings
    try:
        selinux.option(selinux.parse(label))
    except WeightlessError as error:
        raise error.again(where="--selinux-context") from None
    mount = msgspec.structs.replace(settings.config.mount, selinux_context=label)
    return msgspec.structs.replace(settings, config=msgspec.structs.replace(settings.config, mount=mount))


def default_cache_dir() -> Path:
    """/var/lib/weightless/cache for root, the user's cache directory for others."""
    if os.geteuid() == 0:
        return Path("/var/lib/weightless/cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "weightless"


@dataclass(slots=True)
class _State:
    given: Given = field(default_factory=Given)


def remember(context: typer.Context, given: Given) -> None:
    """For the callbacks that run before a command: what was given there holds unless the command was given it again."""
    earlier = context.obj.given if isinstance(context.obj, _State) else Given()
    context.obj = _State(given.over(earlier))


def command(function: Callable[..., None], *, settling: Callable[[Given], object] = settle) -> Callable[..., None]:
    """Gives `function(settings, …)` the shared options and the error handling of the command line.

    `settling` makes of the options what the function gets as its settings.
    """
    shown = inspect.signature(function, eval_str=True)
    parameters = [item for name, item in shown.parameters.items() if name != "settings"]
    shared = list(inspect.signature(Given, eval_str=True).parameters.values())
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in parameters]

    @functools.wraps(function)
    def run(*, context: typer.Context, **values: Any) -> None:
        given = Given(**{item.name: values.pop(item.name) for item in shared})
        remember(context, given)
        merged: Given = context.obj.given
        with_traceback = merged.log_level is not None and merged.log_level.value == "debug"
        _guarded(lambda: function(settling(merged), **values), with_traceback=with_traceback)

    run.__signature__ = inspect.Signature([context, *parameters, *shared])  # type: ignore[attr-defined] # typer reads it
    run.__annotations__ = {item.name: item.annotation for item in (context, *parameters, *shared)}
    return run


def _guarded(call: Callable[[], None], *, with_traceback: bool) -> None:
    try:
        call()
        sys.stdout.flush()
    except WeightlessError as error:
        if with_traceback:
            raise
        console.error(error)
        raise typer.Exit(1) from None
    except (typer.Exit, typer.Abort):  # RuntimeErrors, and no accidents
        raise
    except BrokenPipeError:
        # The reader of a pipe (head) has seen enough. Python would complain once more while flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.note("interrupted")
        raise typer.Exit(130) from None
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        if with_traceback:
            raise
        console.error(_unforeseen(error))
        raise typer.Exit(1) from None


def _unforeseen(error: Exception) -> WeightlessError:
    if isinstance(error, OSError) and error.strerror:
        return WeightlessError(error.strerror, where=str(error.filename or "the system"), fix=REFUSED)
    return WeightlessError(
        f"{type(error).__name__}: {error}",
        where="unforeseen",
        fix="run it again with --log-level debug for the traceback, and report it",
    )
