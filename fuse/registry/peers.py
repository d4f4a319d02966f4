"""What Dragonfly's proxy (dfdaemon) says and wants to hear beside HTTP (dragonflyoss/client, proxy/header.rs).

A mirror is one if its hosts.toml gives it a header `X-Dragonfly-…`, which it needs anyway to know the registry. What it is asked
is the registry's own URL with `?ns=`, each time: its tasks are named by URL, so a signed one that somebody was redirected to
would be shared with nobody. Spegel needs nothing but that. Pure.
"""

from __future__ import annotations

from typing import Final

from fuse.errors import Unavailable, WeightlessError
from fuse.registry.access import Endpoint
from fuse.registry.reply import Reply

PREFIX: Final = "x-dragonfly-"
PRIORITY: Final = "X-Dragonfly-Priority"
ERROR_TYPE: Final = "X-Dragonfly-Error-Type"
_URGENT: Final = "6"
"""Of the levels of dragonflyoss/api, common.proto: a seed peer fetches what nobody has yet; what nydus gives on-demand reads."""
_AHEAD: Final = "3"
"""A usual peer does; what nydus gives its prefetch."""


def speaks_dragonfly(endpoint: Endpoint) -> bool:
    return not endpoint.origin and any(name.lower().startswith(PREFIX) for name, _ in endpoint.headers)


def headers_for(endpoint: Endpoint, *, urgent: bool) -> dict[str, str]:
    """What `endpoint` gets with each request besides what the request itself needs. `urgent`: a reader waits."""
    own = {PRIORITY: _URGENT if urgent else _AHEAD} if speaks_dragonfly(endpoint) else {}
    # Names in one spelling, so that a header of hosts.toml and one of ours do not both go out; the administrator's word counts.
    return own | {name.title(): value for name, value in endpoint.headers}


def judged(endpoint: Endpoint, reply: Reply, error: WeightlessError) -> WeightlessError:
    """What `error`, made of the status of `reply`, is when the mirror says whose fault it is.

    Its own (`proxy`, `dfdaemon`): the next host is asked, whatever the status; a 403 of a proxy says nothing about a right to
    pull. The registry's (`backend`), when that is temporary: the mirror is in good health, and not to be passed over for it.
    """
    kind = reply.header(ERROR_TYPE).strip().lower() if speaks_dragonfly(endpoint) else ""
    if kind in ("proxy", "dfdaemon"):
        return Unavailable(
            f"the peer-to-peer proxy itself is in trouble ({kind}): {error.what}",
            where=error.where,
            retry_after_s=error.retry_after_s if isinstance(error, Unavailable) else None,
            answered=reply.status == 429,
        )
    if kind == "backend" and isinstance(error, Unavailable):
        return Unavailable(
            error.what, where=error.where, fix=error.fix, retry_after_s=error.retry_after_s, answered=True
        )
    return error
