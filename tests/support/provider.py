"""A credential provider as kubelet knows them: a program that takes a token to be its own word for user and password.

Each run leaves a file in its directory: what it was asked (without the token), by whom it was run, with which environment.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

PYTHON: Final = shutil.which("python3", path="/usr/bin:/bin") or "python3"
"""One that every user may run."""
_PROGRAM: Final = """#!{python} -SI
import json, os, sys, tempfile
request = json.load(sys.stdin)
token = request.pop("serviceAccountToken", "")
user, _, password = token.partition("|")
ran = dict(request=request, arguments=sys.argv[1:], uid=os.getuid(), gids=os.getgroups(), environment=dict(os.environ))
with tempfile.NamedTemporaryFile("w", dir={runs!r}, prefix="new-", delete=False) as file:
    json.dump(ran, file)
os.rename(file.name, file.name.replace("new-", "ran-"))
{more}
auth = {auth!r} if not token else {{request["image"].partition("/")[0]: dict(username=user, password=password)}}
print(json.dumps(dict(kind="CredentialProviderResponse", apiVersion=request["apiVersion"], cacheKeyType={key!r},
    cacheDuration={duration!r}, auth=auth)))
"""


def pod_of(account: str, user: str, password: str, *, audience: str = "registry") -> dict[str, str]:
    """What kubelet says of a pod, with a token that the program above takes for this user's."""
    token = {"token": f"{user}|{password}", "expirationTimestamp": "2040-01-02T03:04:05Z"}
    return {
        "csi.storage.k8s.io/pod.namespace": "default",
        "csi.storage.k8s.io/pod.name": f"pod-of-{account}",
        "csi.storage.k8s.io/serviceAccount.name": account,
        "csi.storage.k8s.io/serviceAccount.tokens": json.dumps({audience: token}),
    }


class Programs:
    """A bin directory and a configuration file, as an administrator makes them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        self.runs_dir = root / "runs"
        self.config = root / "providers.yaml"
        self._providers: list[dict[str, Any]] = []
        root.chmod(0o755)
        self.bin.mkdir()
        self.runs_dir.mkdir()
        self.runs_dir.chmod(0o777)

    def install(
        self,
        name: str,
        *,
        match: str = "*.*.*.*:*",
        audience: str = "",
        require_account: bool = True,
        required_annotations: tuple[str, ...] = (),
        cache_type: str = "Token",
        auth: Mapping[str, Any] | None = None,
        key: str = "Registry",
        duration: str | None = "1h",
        default_duration: str = "1h",
        more: str = "",
        env: Mapping[str, str] | None = None,
    ) -> None:
        """`auth`: what it answers when it gets no token. `more`: lines of Python that it runs before it answers."""
        path = self.bin / name
        path.write_text(
            _PROGRAM.format(python=PYTHON, runs=str(self.runs_dir), more=more, auth=auth, key=key, duration=duration)
        )
        path.chmod(0o755)
        provider: dict[str, Any] = {
            "name": name,
            "matchImages": [match],
            "defaultCacheDuration": default_duration,
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "args": ["get"],
            "env": [{"name": key, "value": value} for key, value in (env or {}).items()],
        }
        if audience:
            provider["tokenAttributes"] = {
                "serviceAccountTokenAudience": audience,
                "requireServiceAccount": require_account,
                "cacheType": cache_type,
                "requiredServiceAccountAnnotationKeys": list(required_annotations),
            }
        self._providers = [each for each in self._providers if each["name"] != name] + [provider]
        content = {
            "apiVersion": "kubelet.config.k8s.io/v1",
            "kind": "CredentialProviderConfig",
            "providers": self._providers,
        }
        self.config.write_text(json.dumps(content))

    def runs(self) -> list[dict[str, Any]]:
        """What each run so far left."""
        return [json.loads(path.read_text()) for path in sorted(self.runs_dir.glob("ran-*"))]
