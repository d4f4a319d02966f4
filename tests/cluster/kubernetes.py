"""A cluster as its users have it: kubectl and a kubeconfig."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.settings import NAMESPACE
from tests.support.waiting import until

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """Objects are looked for in the tests' own namespace unless another is named."""

    kubectl: Path
    kubeconfig: Path

    def run(self, *arguments: str, given: str | None = None, check: bool = True, within_s: float = 120) -> str:
        """What kubectl prints; AssertionError with its words when it fails."""
        done = subprocess.run(
            [self.kubectl, *arguments],
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=within_s,
        )
        assert done.returncode == 0 or not check, f"kubectl {' '.join(arguments)}: {done.stderr.strip()}"
        return done.stdout

    def version(self) -> str:
        """Of the API server."""
        return str(json.loads(self.run("version", "-o", "json"))["serverVersion"]["gitVersion"])

    def refuse_what_is_there(self, objects: Sequence[Object]) -> None:
        """Fails if one of these objects exists: whoever deletes them at the end would delete another's."""
        there = self.run("get", "--ignore-not-found", "-o", "name", "-f", "-", given=_list(objects)).split()
        assert not there, f"there already, so not touched: {', '.join(there)}"

    def apply(self, objects: Sequence[Object]) -> None:
        self.run("apply", "--server-side", "-f", "-", given=_list(objects))

    def delete(self, objects: Sequence[Object], *, within_s: float = 120) -> None:
        """Returns when they are gone."""
        self.run("delete", "--ignore-not-found", "-f", "-", given=_list(objects), within_s=within_s)

    def get(self, kind: str, name: str, *, namespace: str = NAMESPACE) -> Object:
        """The object, or an empty one."""
        found = self.run("get", "--ignore-not-found", "-n", namespace, "-o", "json", kind, name)
        return json.loads(found) if found else {}

    def list(self, kind: str, *, namespace: str = NAMESPACE, selector: str = "") -> list[Object]:
        found = self.run("get", "-n", namespace, "-l", selector, "-o", "json", kind)
        return json.loads(found)["items"]

    def logs(self, pod: str, *, namespace: str = NAMESPACE) -> str:
        return self.run("logs", "-n", namespace, pod, "--all-containers", "--tail=-1")

    def until_phase(self, pod: str, *phases: str) -> str:
        """Waits for the pod to be in one of these phases, and says in which it is."""

        def phase() -> str:
            found = self.get("pod", pod).get("status", {}).get("phase", "")
            return found if found in phases else ""

        return self.until(phase, f"pod {pod} is {' or '.join(phases)}", about=pod)

    def until(
        self,
        condition: Callable[[], Any],
        what: str,
        *,
        about: str,
        namespace: str = NAMESPACE,
        within_s: float = 180,
    ) -> Any:
        """Waits for the condition; AssertionError with the Events about that object if it never holds."""
        try:
            return until(condition, what, within_s=within_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n" + "\n".join(self.events(about, namespace=namespace))) from None

    def told(self, name: str, reason: str) -> str:
        """Waits for an Event with this reason about the object; its text."""

        def told() -> str:
            return next((event for event in self.events(name) if event.startswith(f"{reason}:")), "")

        return str(self.until(told, f"{name} is told of {reason}", about=name))

    def events(self, name: str, *, namespace: str = NAMESPACE) -> list[str]:
        """What Kubernetes tells of an object, as `reason: message`."""
        found = self.run("get", "events", "-n", namespace, "-o", "json", f"--field-selector=involvedObject.name={name}")
        return [f"{event['reason']}: {event['message']}" for event in json.loads(found)["items"]]

    def account(self, *namespaces: str) -> str:
        """For whoever looks into a failure: the pods, what happened, and what each pod of these namespaces wrote."""
        parts = []
        for namespace in namespaces:
            look = ["-n", namespace, "-o", "wide"]
            parts += [self.run("get", kind, *look, check=False) for kind in ("pods,pvc,pv", "events")]
            for pod in self.run("get", "pods", "-n", namespace, "-o", "name", check=False).split():
                written = self.run(
                    "logs", "-n", namespace, pod, "--all-containers", "--prefix", "--tail=-1", check=False
                )
                parts.append(f"---- {namespace}/{pod}\n{written}")
        return "\n".join(parts)


def _list(objects: Sequence[Object]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
