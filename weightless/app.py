"""The program: its commands together. Each kind of them is a module of `weightless.cli`; what they do is in
`weightless.commands`, imported when one is run, so that `--help` and an error answer at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from weightless import __version__, console
from weightless.cli import cache, cluster, models, own, profile
from weightless.cli.parameters import HELP
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

app = typer.Typer(
    name="weightless",
    help="Mount AI models from OCI registries: they are there at once, their bytes come while they are read.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=HELP,
    rich_markup_mode="rich",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage. Options may also be written in weightless.toml (--config).",
)
app.add_typer(models.app)
app.add_typer(cluster.app)
app.add_typer(own.app)
app.add_typer(cache.cache, name="cache")
app.add_typer(profile.profile, name="profile")


def _show_version(wanted: bool) -> None:
    if wanted:
        console.say(f"weightless {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    context: typer.Context,
    cache_dir: CacheDir = None,
    certs_dir: CertsDir = None,
    plain_http: PlainHttp = None,
    prefetch: PrefetchOption = None,
    verify: VerifyOption = None,
    log_level: LogLevelOption = None,
    config: ConfigFile = None,
    version: Annotated[
        bool,
        typer.Option("--version", metavar=FLAG, help="Print the version.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    del version
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
