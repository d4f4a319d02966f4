"""The chart as helm renders it: what the tests of deploy/ look at."""

from __future__ import annotations

import functools
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "chart"
VALUES = Path(__file__).parent / "values"
CASES = tuple(sorted(path.stem for path in VALUES.glob("*.yaml")))
PROMETHEUS = "monitoring.coreos.com/v1"


@dataclass(frozen=True)
class Helm:
    program: str

    def run(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.program, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **environment},
        )

    def template(
        self, case: str, *settings: str, kubernetes: str = "1.34", has: tuple[str, ...] = (PROMETHEUS,)
    ) -> subprocess.CompletedProcess[str]:
        """`settings` are of --set."""
        options = [part for setting in settings for part in ("--set", setting)]
        options += [part for version in has for part in ("--api-versions", version)]
        return self.run(
            "template",
            "weightless",
            CHART,
            "--namespace=weightless",
            f"--kube-version={kubernetes}",
            f"--values={VALUES / f'{case}.yaml'}",
            *options,
        )

    @functools.cache  # noqa: B019  (one a session)
    def objects(
        self, case: str, *settings: str, kubernetes: str = "1.34", has: tuple[str, ...] = (PROMETHEUS,)
    ) -> Objects:
        answer = self.template(case, *settings, kubernetes=kubernetes, has=has)
        assert answer.returncode == 0, answer.stderr
        return Objects([each for each in yaml.safe_load_all(answer.stdout) if each])


@dataclass(frozen=True)
class Objects:
    all: list[dict[str, Any]]

    def of(self, kind: str, name: str = "") -> list[dict[str, Any]]:
        return [each for each in self.all if each["kind"] == kind and (not name or each["metadata"]["name"] == name)]

    def one(self, kind: str, name: str = "") -> dict[str, Any]:
        (found,) = self.of(kind, name)
        return found

    def pods(self) -> dict[str, dict[str, Any]]:
        """The specifications of pods, by the name of what makes them."""
        return {
            each["metadata"]["name"]: each["spec"]["template"]["spec"]
            for each in self.all
            if each["kind"] in ("DaemonSet", "Deployment")
        }

    def containers(self) -> dict[tuple[str, str], dict[str, Any]]:
        """By pod and container."""
        return {
            (name, container["name"]): container
            for name, pod in self.pods().items()
            for container in (*pod.get("initContainers", ()), *pod["containers"])
        }
