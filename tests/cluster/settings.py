"""What the tests are told of a cluster, by whoever has one and by `own.py`: through the environment, and no other way."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import yaml

PREFIX: Final = "WEIGHTLESS_CLUSTER_"
RUNS: Final = "WEIGHTLESS_CLUSTER"
"""Set by `python -m tests.cluster`; without it the tests that need a cluster are not collected."""

NAMESPACE: Final = "weightless-test"
"""Where the tests' pods are. It is the tests' own: it must not be there before, and goes with all that is in it."""
SECRET: Final = "weightless-test"
"""The docker configuration, in that namespace and in the driver's; values may name it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A cluster, how the driver gets into it, and a model to read. CONTRIBUTING.md (A real cluster) says what each is."""

    kubeconfig: Path
    values: Path | None
    """The chart is installed with these."""
    kustomization: Path | None
    """Or this is applied."""
    reference: str
    sums: str
    reader: str
    docker_config: str
    """The content of a config.json that may pull the model, which then is nobody's but its users'; empty for a public one."""
    account: dict[str, Any]
    """A ServiceAccount that may pull the model by the nodes' credential providers; empty if there is none."""
    clean: bool
    """At the end the chart takes the cache and the state from each node."""
    here: bool
    """The one node is the machine that the tests run on."""
    logs: Path | None
    """What the cluster has to say after a failure goes there."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        given = {name.removeprefix(PREFIX): value for name, value in environment.items() if name.startswith(PREFIX)}
        missing = [name for name in ("MODEL", "SUMS") if name not in given]
        if missing:
            _stop(f"with KUBECONFIG, please also set {', '.join(PREFIX + name for name in missing)}")
        ways = [name for name in ("VALUES", "KUSTOMIZATION") if name in given]
        if len(ways) != 1:
            _stop(f"say how the driver is installed: {PREFIX}VALUES or {PREFIX}KUSTOMIZATION, one of them")
        return cls(
            kubeconfig=Path(environment["KUBECONFIG"]),
            values=_path(given, "VALUES"),
            kustomization=_path(given, "KUSTOMIZATION"),
            reference=given["MODEL"],
            sums=_text(given, "SUMS"),
            reader=given.get("READER", "busybox:1.37"),
            docker_config=_text(given, "DOCKER_CONFIG"),
            account=yaml.safe_load(_text(given, "ACCOUNT")) or {},
            clean=given.get("CLEAN", "") == "yes",
            here=given.get("HERE", "") == "yes",
            logs=_path(given, "LOGS"),
        )


def _path(given: Mapping[str, str], name: str) -> Path | None:
    if name not in given:
        return None
    path = Path(given[name]).absolute()
    if not path.exists():
        _stop(f"{PREFIX}{name}: there is no {path}")
    return path


def _text(given: Mapping[str, str], name: str) -> str:
    path = _path(given, name)
    return path.read_text() if path is not None else ""


def _stop(words: str) -> None:
    raise SystemExit(f"cluster-test: {words} (CONTRIBUTING.md, A real cluster)")
