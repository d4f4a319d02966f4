"""The commands: their names, parameters and help. What they do is in `weightless.commands`, imported when one is run, so
that `--help` and an error answer at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fuse.errors import InvalidRequest
from weightless import __version__, console
from weightless.options import (
    FLAG,
    CacheDir,
    CertsDir,
    ConfigFile,
    Given,
    LogLevelOption,
    NativeOption,
    PlainHttp,
    PrefetchOption,
    Settings,
    VerifyOption,
    WithoutResendChoice,
    command,
    remember,
    with_native,
)

_HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    name="weightless",
    help="Mount AI models from OCI registries: they are there at once, their bytes come while they are read.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=_HELP,
    rich_markup_mode="rich",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage. Options may also be written in weightless.toml (--config).",
)
cache = typer.Typer(
    no_args_is_help=True, help="Look at, empty and check the cache.", context_settings=_HELP, rich_markup_mode="rich"
)
app.add_typer(cache, name="cache")
profile = typer.Typer(
    no_args_is_help=True,
    help="Look at and publish the order in which a model is loaded.",
    context_settings=_HELP,
    rich_markup_mode="rich",
)
app.add_typer(profile, name="profile")

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


def _directory(text: str) -> Path:
    """To a path, an empty text would be the current directory: nobody means that."""
    if not text:
        raise InvalidRequest("it is empty", where="DIR", fix="name a directory; was a variable left unset?")
    return Path(text)


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


@cache.callback()
@profile.callback()
def _group(
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


@app.command()
@command
def mount(
    settings: Settings,
    reference: Reference,
    directory: Annotated[str, typer.Argument(metavar="DIR", help="An existing directory.", show_default=False)],
    exclude: Exclude = None,
    exclude_weights: ExcludeWeights = False,
    native: NativeOption = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", metavar=FLAG, help="Stay, log here, unmount on Ctrl-C.")
    ] = False,
) -> None:
    """Mount a model on a directory.

    Returns as soon as the files are there to be read; their bytes are fetched when they are read, and in the background.
    Works as root, and as any user who may run fusermount3.
    """
    from weightless.commands.mount import run

    run(
        with_native(settings, native),
        reference,
        _directory(directory),
        exclude=tuple(exclude or ()),
        exclude_weights=exclude_weights,
        foreground=foreground,
    )


@app.command()
@command
def unmount(
    settings: Settings,
    directory: Directory,
    lazy: Annotated[
        bool,
        typer.Option(
            "--lazy", metavar=FLAG, help="Detach now, even if files are open; what is open is readable no more."
        ),
    ] = False,
) -> None:
    """Unmount a model; returns when the processes behind it are gone. What was fetched stays in the cache."""
    from weightless.commands.unmount import run

    run(settings, _directory(directory), lazy=lazy)


@app.command(name="inspect")
@command
def inspect_(
    settings: Settings,
    reference: Reference,
    exclude: Exclude = None,
    exclude_weights: ExcludeWeights = False,
    json: Json = False,
) -> None:
    """Show the files of a model: sizes, media types, digests, and how lazily each can be read. Fetches no file."""
    from weightless.commands.inspection import run

    run(settings, reference, exclude=tuple(exclude or ()), exclude_weights=exclude_weights, json=json)


@app.command()
@command
def pull(
    settings: Settings,
    reference: Reference,
    exclude: Exclude = None,
    exclude_weights: ExcludeWeights = False,
    pin: Annotated[bool, typer.Option("--pin", metavar=FLAG, help="Keep it in the cache until `cache unpin`.")] = False,
) -> None:
    """Fetch a whole model into the cache, and verify it. Ctrl-C keeps what is there already."""
    from weightless.commands.pull import run

    run(settings, reference, exclude=tuple(exclude or ()), exclude_weights=exclude_weights, pin=pin)


@app.command(name="index")
@command
def index_(
    settings: Settings,
    reference: Reference,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", metavar=FLAG, help="Compute the index, and push nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Push the chunk index of a model beside it, so that every mount can verify what it reads while it is lazy.

    Fetches what is not in the cache. Needs credentials that may push to the repository.
    """
    from weightless.commands.indexing import run

    run(settings, reference, dry_run=dry_run, json=json)


@profile.command(name="push")
@command
def profile_push(settings: Settings, reference: Reference) -> None:
    """Push the order in which a model was loaded here beside it, so that other nodes prefetch it in that order.

    Needs credentials that may push to the repository.
    """
    from weightless.commands.profiles import push

    push(settings, reference)


@profile.command(name="show")
@command
def profile_show(settings: Settings, reference: Reference, json: Json = False) -> None:
    """Show in which order a mount of a model would be prefetched: as it was loaded here, else as somebody pushed it."""
    from weightless.commands.profiles import show

    show(settings, reference, json=json)


@app.command()
@command
def status(settings: Settings, json: Json = False) -> None:
    """Show what is mounted: how much of it is in the cache, how fast it comes, what waits and why."""
    from weightless.commands.status import run

    run(settings, json=json)


@app.command()
@command
def node(
    settings: Settings,
    endpoint: Annotated[
        str | None,
        typer.Option(
            envvar="CSI_ENDPOINT", help="The plugin's socket: unix:///…/csi.sock.", metavar="URL", show_default=False
        ),
    ] = None,
    node_id: Annotated[
        str | None,
        typer.Option(envvar="NODE_ID", help="This node's name in Kubernetes.", metavar="NAME", show_default=False),
    ] = None,
    kubelet_dir: Annotated[
        Path | None, typer.Option(help="kubelet's directory; /var/lib/kubelet by default.", show_default=False)
    ] = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(help="Where published volumes are recorded; /var/lib/weightless by default.", show_default=False),
    ] = None,
    metrics_address: Annotated[
        str | None,
        typer.Option(help="Serve Prometheus metrics there: host:port, :port.", metavar="ADDRESS", show_default=False),
    ] = None,
    keeper: Annotated[
        str | None,
        typer.Option(
            help="The socket of a keeper that runs by itself (weightless keeper): unix:///…/keeper.sock. "
            "Without it the plugin starts one.",
            metavar="URL",
            show_default=False,
        ),
    ] = None,
    without_resend: Annotated[
        WithoutResendChoice | None,
        typer.Option(
            help="On kernels before 6.9: reads that a dead worker held wait for ever (wait), or fail (abort).",
            show_default=False,
        ),
    ] = None,
    native: NativeOption = None,
) -> None:
    """Run the CSI node plugin (csi.weightless.dev) until SIGTERM."""
    from weightless.commands.node import run

    run(
        with_native(settings, native),
        endpoint=endpoint,
        node_id=node_id,
        kubelet_dir=kubelet_dir,
        state_dir=state_dir,
        metrics_address=metrics_address,
        keeper=keeper,
        without_resend=None if without_resend is None else "abort" if without_resend.value == "abort" else "wait",
    )


@app.command()
@command
def keeper(
    settings: Settings,
    socket: Annotated[
        str,
        typer.Option(help="Where it listens.", metavar="URL", show_default=True),
    ] = "unix:///run/weightless-keeper/keeper.sock",
) -> None:
    """Hold the mounts of a node plugin (node --keeper) while that is restarted or upgraded, until SIGTERM.

    A tiny process that needs no upgrade, and runs in a container of its own.
    """
    from weightless.commands.keeper import run

    run(settings, socket)


@app.command()
@command
def demo(
    settings: Settings,
    rate: Annotated[float, typer.Option(help="How fast the demo's registry sends, in MB/s.", min=1)] = 20,
) -> None:
    """Watch a model become readable through CSI while its bytes still lie in a registry. Needs root; leaves nothing behind."""
    from weightless.demo.tour import run

    run(settings, rate_bytes_per_s=int(rate * 1e6))


@app.command()
@command
def version(settings: Settings) -> None:
    """Print the version."""
    del settings
    console.say(f"weightless {__version__}")


@cache.command(name="ls")
@command
def cache_ls(settings: Settings, json: Json = False) -> None:
    """List the blobs in the cache, most recently used first."""
    from weightless.commands.cache import list_blobs

    list_blobs(settings, json=json)


Digests = Annotated[list[str] | None, typer.Argument(metavar="DIGEST", show_default=False)]


@cache.command(name="rm")
@command
def cache_rm(
    settings: Settings,
    digests: Digests = None,
    unused: Annotated[
        bool, typer.Option("--all", metavar=FLAG, help="Remove all that is neither mounted nor pinned.")
    ] = False,
) -> None:
    """Remove blobs from the cache, by digest or by its first characters."""
    from weightless.commands.cache import remove

    remove(settings, tuple(digests or ()), unused=unused)


Pinned = Annotated[list[str], typer.Argument(metavar="REFERENCE|DIGEST", show_default=False)]


@cache.command(name="pin")
@command
def cache_pin(settings: Settings, names: Pinned) -> None:
    """Keep a model, or single blobs, in the cache: neither eviction nor `rm` takes them."""
    from weightless.commands.cache import pin

    pin(settings, tuple(names))


@cache.command(name="unpin")
@command
def cache_unpin(settings: Settings, names: Pinned) -> None:
    """Take back `pin` or `pull --pin`, by the same name."""
    from weightless.commands.cache import unpin

    unpin(settings, tuple(names))


@cache.command(name="verify")
@command
def cache_verify(settings: Settings, digests: Digests = None) -> None:
    """Read blobs again and compare them with their checksums and digests; damaged blocks are forgotten and fetched anew."""
    from weightless.commands.cache import verify

    verify(settings, tuple(digests or ()))
