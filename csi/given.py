"""What a request brings to show to registries: its secrets, and kubelet's tokens of the pod's ServiceAccount. Pure.

Kubelet puts the tokens into the secrets if CSIDriver's `serviceAccountTokenInSecrets` says so (Kubernetes 1.35), else into the
volume context. Looked at when credentials are needed, and not with the rest of the request: a secret that somebody has spoilt
must not fail the repeated publish of a volume that is there (kubernetes issue 121271).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from csi import attributes
from fuse.credentials.given import Given, ServiceAccount, parse_tokens

TOKENS: Final = "csi.storage.k8s.io/serviceAccount.tokens"
ACCOUNT: Final = "csi.storage.k8s.io/serviceAccount.name"
NAMESPACE: Final = "csi.storage.k8s.io/pod.namespace"


def apart(secrets: Mapping[str, str], context: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The secrets that a person wrote, and what kubelet says of the pod, wherever it put its tokens."""
    own = {key: value for key, value in secrets.items() if key != TOKENS}
    said = {key: context[key] for key in (NAMESPACE, ACCOUNT, TOKENS) if key in context}
    if TOKENS in secrets:
        said[TOKENS] = secrets[TOKENS]
    return own, said


def parse(secrets: Mapping[str, str], said: Mapping[str, str]) -> Given:
    """From both parts of `apart`. Raises InvalidRequest; no value appears in it."""
    namespace, name, tokens = (said.get(key) for key in (NAMESPACE, ACCOUNT, TOKENS))
    return Given(
        secrets=attributes.check_secrets(secrets),
        account=ServiceAccount(namespace, name) if namespace and name else None,
        tokens=parse_tokens(tokens, TOKENS) if tokens else {},
    )
