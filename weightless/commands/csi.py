"""`weightless csi`: one program for the nodes and for the controller, chosen by `--mode`."""

from __future__ import annotations

from pathlib import Path

from fuse import dumps
from fuse.errors import InvalidRequest
from fuse.spec import WithoutResend
from weightless.options import Settings


def run(
    settings: Settings,
    *,
    mode: str,
    endpoint: str | None,
    node_id: str | None,
    kubelet_dir: Path | None,
    state_dir: Path | None,
    metrics_address: str | None,
    keeper: str | None,
    max_volumes: int | None,
    without_resend: WithoutResend | None,
    native_given: bool,
) -> None:
    """Serves until SIGTERM. Raises InvalidRequest for options of another mode, and what the mode's own command raises."""
    dumps.forbid()  # the credentials of many pods come together here
    if mode == "controller":
        _refuse(
            {
                # Not --node-id: it comes from the environment, which pods of both kinds may share.
                "--kubelet-dir": kubelet_dir is not None,
                "--state-dir": state_dir is not None,
                "--keeper": keeper is not None,
                "--max-volumes": max_volumes is not None,
                "--without-resend": without_resend is not None,
                "--native": native_given,
            }
        )
        from weightless.commands import controller

        controller.run(settings, endpoint=endpoint, metrics_address=metrics_address)
        return
    from weightless.commands import node

    node.run(
        settings,
        endpoint=endpoint,
        node_id=node_id,
        kubelet_dir=kubelet_dir,
        state_dir=state_dir,
        metrics_address=metrics_address,
        keeper=keeper,
        max_volumes=max_volumes,
        without_resend=without_resend,
        with_controller=mode == "all",
    )


def _refuse(options: dict[str, bool]) -> None:
    given = [option for option, was_given in options.items() if was_given]
    if given:
        raise InvalidRequest(
            f"a controller has no {given[0]}: it mounts nothing",
            where="csi --mode controller",
            fix="leave it out, or use --mode all",
        )
