"""TLS contexts from PEM texts, made once and shared by both HTTP clients and all threads.

A context costs some milliseconds and half a megabyte (the system's authorities), hence the sharing. Certificates come as text,
never as paths: the process that uses them may not be able to read the files.
"""

from __future__ import annotations

import os
import ssl
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from fuse.errors import InvalidConfig
from fuse.registry.access import ClientCertificate, Endpoint

_MAX_CONTEXTS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Whom to trust and how to introduce oneself; the key of a context."""

    ca_pems: tuple[str, ...] = ()
    client_certificates: tuple[ClientCertificate, ...] = ()
    skip_verify: bool = False

    @classmethod
    def of(cls, endpoint: Endpoint) -> Trust:
        return cls(
            ca_pems=endpoint.ca_pems,
            client_certificates=endpoint.client_certificates,
            skip_verify=endpoint.skip_verify,
        )

    def elsewhere(self) -> Trust:
        """For hosts that the endpoint points to: a private authority signs a site's object store and token service as well,
        but a client certificate is shown to nobody else."""
        return Trust(ca_pems=self.ca_pems, skip_verify=self.skip_verify)


class TlsContexts:
    """The contexts of one process. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._contexts: OrderedDict[Trust, ssl.SSLContext] = OrderedDict()

    def context(self, trust: Trust) -> ssl.SSLContext:
        """Raises InvalidConfig for a PEM text that cannot be used."""
        with self._lock:
            context = self._contexts.get(trust)
            if context is None:
                context = self._contexts[trust] = _make(trust)
                if len(self._contexts) > _MAX_CONTEXTS:
                    self._contexts.popitem(last=False)
            else:
                self._contexts.move_to_end(trust)
            return context


def _make(trust: Trust) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    for pem in trust.ca_pems:
        try:
            context.load_verify_locations(cadata=pem)
        except (ssl.SSLError, ValueError):
            raise InvalidConfig(
                "the CA certificate is not usable PEM", where="hosts.toml, ca", fix="name a PEM file"
            ) from None
    for certificate in trust.client_certificates:
        _load_client_certificate(context, certificate)
    if trust.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _load_client_certificate(context: ssl.SSLContext, certificate: ClientCertificate) -> None:
    """OpenSSL's Python interface wants files: the text goes through a memory file, never through a disk."""
    fd = os.memfd_create("client-certificate", os.MFD_CLOEXEC)
    try:
        content = memoryview(f"{certificate.certificate}\n{certificate.key}\n".encode())
        while content:
            content = content[os.write(fd, content) :]
        # A password callback that answers nothing: without it OpenSSL would ask on the terminal.
        context.load_cert_chain(f"/proc/self/fd/{fd}", password=lambda: "")
    except (ssl.SSLError, ValueError, OSError):
        raise InvalidConfig(
            "the client certificate and its key are not a usable PEM pair",
            where="hosts.toml, client",
            fix="the key must belong to the certificate and have no password",
        ) from None
    finally:
        os.close(fd)
