"""A registry that can be pushed to, with or without the referrers API (OCI distribution-spec 1.1). For tests only."""

from __future__ import annotations

import json
import re
from typing import Any

from fuse.artifact.digest import Digest
from fuse.artifact.manifest import OCI_INDEX, OCI_MANIFEST
from tests.support.registry import FaultyRegistry
from weightless.demo.registry import Request, Response

_UPLOADS = re.compile(r"/v2/(?P<repository>.+)/blobs/uploads/(?P<id>\w*)")
_MANIFEST = re.compile(r"/v2/(?P<repository>.+)/manifests/(?P<target>[^/]+)")
_REFERRERS = re.compile(r"/v2/(?P<repository>.+)/referrers/(?P<digest>[^/]+)")


class PushRegistry(FaultyRegistry):
    """`read_only` answers 403 to every push, as for credentials that may only pull. Without `filters` the referrers API lists all
    that it has, whatever is asked for."""

    def __init__(
        self, *, referrers_api: bool = True, filters: bool = True, read_only: bool = False, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.referrers_api = referrers_api
        self.filters = filters
        self.read_only = read_only
        self.pushed: list[str] = []
        """What was written, in order: `blob …`, `manifest …`."""

    def serve(self, request: Request) -> Response:
        if request.method in ("POST", "PUT"):
            if self.read_only:
                return Response.error(403, "DENIED", "requested access to the resource is denied")
            return self._push(request)
        match = _REFERRERS.fullmatch(request.path)
        if match is not None and self.referrers_api:
            wanted = request.query.get("artifactType", "") if self.filters else ""
            return self._referrers(match["repository"], match["digest"], wanted)
        return super().serve(request)

    def _push(self, request: Request) -> Response:
        match = _UPLOADS.fullmatch(request.path)
        if match is not None and request.method == "POST":
            return Response(status=202, headers={"Location": f"/v2/{match['repository']}/blobs/uploads/u1?state=x"})
        if match is not None:
            digest = Digest.of(request.body)
            if request.query.get("digest") != str(digest):
                return Response.error(400, "DIGEST_INVALID", "the digest is another")
            self.add_blob(request.body)
            self.pushed.append(f"blob {digest}")
            return Response(status=201)
        match = _MANIFEST.fullmatch(request.path)
        if match is None:
            return Response.error(404, "NAME_UNKNOWN", "no such path")
        target = match["target"]
        tags = () if ":" in target else (target,)
        self.add_manifest(
            match["repository"], request.body, media_type=request.headers.get("content-type", ""), tags=tags
        )
        self.pushed.append(f"manifest {target}")
        subject = json.loads(request.body).get("subject")
        processed = subject is not None and self.referrers_api
        return Response(status=201, headers={"OCI-Subject": subject["digest"]} if processed else {})

    def _referrers(self, repository: str, digest: str, artifact_type: str) -> Response:
        found = []
        with self._lock:
            manifests = list(self._manifests.items())
        for (name, target), (content, _) in manifests:
            if name != repository or ":" not in target:
                continue
            document = json.loads(content)
            if (document.get("subject") or {}).get("digest") != digest:
                continue
            if artifact_type in ("", document.get("artifactType")):
                found.append(
                    {
                        "mediaType": OCI_MANIFEST,
                        "digest": target,
                        "size": len(content),
                        "artifactType": document.get("artifactType"),
                        "annotations": document.get("annotations", {}),
                    }
                )
        listing = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found}
        headers = {"OCI-Filters-Applied": "artifactType"} if artifact_type else {}
        return Response.of(200, json.dumps(listing).encode(), OCI_INDEX, headers)
