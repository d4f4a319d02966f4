"""What the commands' signatures share: groups of commands, arguments and options that several have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from fuse.errors import InvalidRequest
from weightless.options import (
    FLAG,
    CacheDir,
    CertsDir,
    ConfigFile,
    Given,
    LogLevelOption,
    PlainHttp,
    PrefetchOption,
    VerifyOption,
    remember,
)

HELP: Final = {"help_option_names": ["-h", "--help"]}

Reference = Annotated[
    str,
    typer.Argument(help="host\\[:port]/repository\\[:tag]\\[@digest]", metavar="REFERENCE", show_default=False),
]
# Text, not a path: typer would stat a path, and the stat of a mount whose processes are dead never returns.
Directory = Annotated[str, typer.Argument(metavar="DIR", show_default=False)]
Json = Annotated[bool, typer.Option("--json", metavar=FLAG, help="Print JSON for programs.")]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude", metavar="PATTERN", help="Hide files: a gitignore pattern, may be given again.", show_default=False
    ),
]
ExcludeWeights = Annotated[
    bool, typer.Option("--exclude-weights", metavar=FLAG, help="Hide model weights, by their names.")
]


def group(purpose: str) -> typer.Typer:
    """Commands of two words; the shared options may stand between the words, too."""
    made = typer.Typer(no_args_is_help=True, help=purpose, context_settings=HELP, rich_markup_mode="rich")
    made.callback()(_between)
    return made


def _between(
    context: typer.Context,
    cache_dir: CacheDir = None,
    certs_dir: CertsDir = None,
    plain_http: PlainHttp = None,
    prefetch: PrefetchOption = None,
    verify: VerifyOption = None,
    log_level: LogLevelOption = None,
    config: ConfigFile = None,
) -> None:
    remember(
        context,
        Given(
            cache_dir=cache_dir,
            certs_dir=certs_dir,
            plain_http=plain_http,
            prefetch=prefetch,
            verify=verify,
            log_level=log_level,
            config=config,
        ),
    )


def directory_of(text: str) -> Path:
    """To a path, an empty text would be the current directory: nobody means that."""
    if not text:
        raise InvalidRequest("it is empty", where="DIR", fix="name a directory; was a variable left unset?")
    return Path(text)
