"""No secret is where it does not belong: logs, errors, command lines, environments, files."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from tests.support.cli import CommandLine
from tests.support.dockerregistry import docker_config
from tests.support.leaks import Sandbox
from tests.support.metrics import scrape
from tests.support.models import digest_tree
from tests.support.node import Node
from tests.support.ports import free_port
from tests.support.provider import Programs, pod_of
from tests.support.registry import FaultyRegistry, Tokens
from tests.support.waiting import until
from weightless.demo.pack import PackedModel
from weightless.demo.registry import Request, Response

pytestmark = pytest.mark.kernel

CANARY = "canary-91d2c7e0-hunter2"
HEADER = "canary-44aa09be-header"
WRONG = "canary-5b1f00aa-wrong"


class Repeating(FaultyRegistry):
    """Says no with what it was sent: as a hostile registry does, and a proxy that somebody debugs."""

    def answer(self, request: Request) -> Response:
        response = super().answer(request)
        if response.status != 401:
            return response
        said = " ".join(request.headers.get(name, "") for name in ("authorization", "x-key"))
        headers = {name: value for name, value in response.headers.items() if name == "WWW-Authenticate"}
        return Response.error(401, "UNAUTHORIZED", f"you sent {said}", headers)


@pytest.fixture
def registry() -> Iterator[FaultyRegistry]:
    with Repeating() as server:
        yield server


def needles(registry: FaultyRegistry) -> list[bytes]:
    """The passwords, what a header makes of them, every token that was given out, and a header of hosts.toml."""
    passwords = (CANARY, WRONG)
    found = [password.encode() for password in (*passwords, HEADER)]
    found += [base64.b64encode(f"reader:{password}".encode()).rstrip(b"=") for password in passwords]
    if registry.tokens is not None:
        found += [token.encode() for token in registry.tokens.valid]
    return found


def seen_in_processes(sandbox: Sandbox) -> dict[str, bytes]:
    return {
        f"/proc/{pid}/{name}": Path(f"/proc/{pid}/{name}").read_bytes()
        for pid in sandbox.processes()
        for name in ("cmdline", "environ")
    }


def seen_on_disk(sandbox: Sandbox) -> dict[str, bytes]:
    """All files of the sandbox but docker's configuration and hosts.toml, which hold secrets by their nature."""
    return {
        str(path): path.read_bytes()
        for path in sandbox.root.rglob("*")
        if path.is_file()
        and not path.is_relative_to(sandbox.docker)
        and not path.is_relative_to(sandbox.root / "certs")
        and not path.is_relative_to(sandbox.root / "kubelet")
    }


def assert_hidden(registry: FaultyRegistry, places: dict[str, bytes]) -> None:
    assert places
    for needle in needles(registry):
        assert [] == [place for place, content in places.items() if needle in content], needle.decode()


@pytest.fixture(params=["basic", "bearer"])
def locked(request: pytest.FixtureRequest, registry: FaultyRegistry, packed: PackedModel) -> str:
    """A registry with credentials, and the model in it."""
    if request.param == "basic":
        registry.basic = {"reader": CANARY}
    else:
        registry.tokens = Tokens(users={"reader": CANARY})
    packed.serve(registry, "models/small", "1.0")
    return f"{registry.host}/models/small:1.0"


def test_the_node_plugin_shows_no_secret(
    sandbox: Sandbox, registry: FaultyRegistry, locked: str, named: str, small_model: Path
) -> None:
    """With debug logs: a publish that works, one with a wrong password, and one that is not understood."""
    config = json.dumps({"auths": {registry.host: {"auth": base64.b64encode(f"reader:{CANARY}".encode()).decode()}}})
    errors: list[str] = []
    with (Path(named) / registry.host / "hosts.toml").open("a") as hosts:
        hosts.write(f'[header]\nX-Key = "{HEADER}"\n')
    with Node(sandbox, "--certs-dir", named) as node:
        target = node.target("pod-1")
        node.publish("csi-1", target, {"reference": locked}, secrets={".dockerconfigjson": config})
        assert digest_tree(small_model) == digest_tree(target)
        for number, secrets in enumerate(
            ({"username": "reader", "password": WRONG}, {".dockerconfigjson": f"{{{CANARY}"}, {"passwort": CANARY})
        ):
            with pytest.raises(grpc.RpcError) as caught:
                node.publish(f"csi-bad-{number}", node.target(f"bad-{number}"), {"reference": locked}, secrets=secrets)
            errors.append(caught.value.details())
        assert HEADER in {entry.request.headers.get("x-key") for entry in registry.requests()}
        assert "you sent" in errors[0]
        assert_hidden(registry, seen_in_processes(sandbox))
        assert_hidden(registry, seen_on_disk(sandbox))
        node.unpublish("csi-1", target)
        assert [] == node.leftovers()
    assert_hidden(registry, seen_on_disk(sandbox) | {f"error {text}": text.encode() for text in errors})


def test_the_command_line_shows_no_secret(
    sandbox: Sandbox, registry: FaultyRegistry, locked: str, small_model: Path
) -> None:
    """A mount with docker's credentials, and one with a wrong password, with debug output."""
    cli = CommandLine(sandbox, ("--log-level", "debug"))
    docker_config(sandbox.docker, registry.host, password=CANARY)
    with cli.mounted(locked) as mounted:
        assert digest_tree(small_model) == digest_tree(mounted)
        assert_hidden(registry, seen_in_processes(sandbox))
    docker_config(sandbox.docker, registry.host, password=WRONG)
    refused = cli.run("inspect", locked)
    assert 1 == refused.code, str(refused)
    assert_hidden(registry, {"output": (refused.out + refused.error).encode()} | seen_on_disk(sandbox))


def test_nothing_of_a_pods_token_is_seen(
    sandbox: Sandbox, registry: FaultyRegistry, packed: PackedModel, named: str, small_model: Path
) -> None:
    """A provider that exchanges it, another one that fails and shouts it, both looked at while they run; the metrics as well."""
    registry.basic = {"reader": CANARY}
    packed.serve(registry, "models/small", "1.0")
    attributes = {"reference": f"{registry.host}/models/small:1.0"}
    programs = Programs(sandbox.directory("providers"))
    go = programs.root / "go"
    wait = f"while not os.path.exists({str(go)!r}): pass"
    shout = f"{wait}\nprint(token); print(token, file=sys.stderr); sys.exit(token)"
    programs.install("loud", match=registry.host, audience="registry", more=shout)
    programs.install("exchange", match=registry.host, audience="registry", more=wait, duration="0")
    (sandbox.root / "weightless.toml").write_text(
        f'[credentials]\nprovider-config = "{programs.config}"\nprovider-bin-dir = "{programs.bin}"\n'
    )
    port = free_port()
    with (
        Node(
            sandbox,
            *("--certs-dir", named, "--config", str(sandbox.root / "weightless.toml")),
            metrics_address=f"127.0.0.1:{port}",
        ) as node,
        ThreadPoolExecutor(1) as pool,
    ):
        target = node.target("pod-1")
        publish = pool.submit(node.publish, "csi-1", target, attributes | pod_of("reader", "reader", CANARY))
        until(programs.runs, "a provider runs")
        places = seen_in_processes(sandbox)
        assert any("bin/loud" in place or b"bin/loud" in content for place, content in places.items())
        assert_hidden(registry, places)
        go.touch()
        publish.result(60)
        assert digest_tree(small_model) == digest_tree(target)
        node.publish("csi-1", target, attributes | pod_of("reader", "reader", WRONG))  # a newer token, of no use
        with pytest.raises(grpc.RpcError) as caught:
            node.publish("csi-2", node.target("pod-2"), attributes | pod_of("other", "reader", WRONG))
        assert_hidden(registry, seen_in_processes(sandbox))
        assert_hidden(registry, {"metrics": scrape(port).text.encode(), "error": caught.value.details().encode()})
        assert_hidden(registry, seen_on_disk(sandbox))
        assert "provider_failed" in node.last_words()
        assert "credentials_not_renewed" in node.last_words()
        node.unpublish("csi-1", target)
    assert_hidden(registry, seen_on_disk(sandbox))
    assert [] == node.leftovers()
