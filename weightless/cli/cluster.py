"""`node`, `keeper`: what runs in a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightless.options import NativeOption, Settings, WithoutResendChoice, command, with_native

app = typer.Typer()


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
