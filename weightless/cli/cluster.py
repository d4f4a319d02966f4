"""`csi`, `keeper`: what runs in a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightless.options import ModeChoice, NativeOption, Settings, WithoutResendChoice, command, with_native

app = typer.Typer()


@app.command()
# Its name before there was a controller: manifests of then go on working.
@app.command(name="node", hidden=True)
@command
def csi(
    settings: Settings,
    mode: Annotated[
        ModeChoice,
        typer.Option(
            help="Mount models on this node (node), make volumes for claims (controller), or both in one process (all)."
        ),
    ] = ModeChoice.node,
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
    max_volumes: Annotated[
        int | None,
        typer.Option(
            help="How many volumes the scheduler may give this node; no limit by default.", min=0, show_default=False
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
    """Run the CSI plugin (csi.weightless.dev) until SIGTERM: on every node, and the controller once a cluster.

    The controller needs no root, no FUSE and no cache.
    """
    from weightless.commands.csi import run

    run(
        with_native(settings, native),
        mode=mode.value,
        endpoint=endpoint,
        node_id=node_id,
        kubelet_dir=kubelet_dir,
        state_dir=state_dir,
        metrics_address=metrics_address,
        keeper=keeper,
        max_volumes=max_volumes,
        native_given=native is not None,
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
    """Hold the mounts of a node plugin (csi --keeper) while that is restarted or upgraded, until SIGTERM.

    A tiny process that needs no upgrade, and runs in a container of its own.
    """
    from weightless.commands.keeper import run

    run(settings, socket)
