"""TLS: private authorities, skip_verify, client certificates, and what failures say."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest
import trustme

from fuse.artifact.digest import Digest
from fuse.errors import InvalidConfig, Unavailable
from fuse.registry import repository
from fuse.registry.access import ClientCertificate, Endpoint
from fuse.registry.tls import TlsContexts, Trust
from fuse.registry.transport import Transport
from tests.conftest import need_program
from tests.fuse.registry.conftest import REPOSITORY, Authority, endpoint_of, repository_at
from tests.support.registry import FaultyRegistry

BLOB = b"0123456789" * 300_000


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "_backoff", lambda _state: 0.01)


def filled(registry: FaultyRegistry) -> FaultyRegistry:
    registry.add_manifest(REPOSITORY, b"{}", tags=["v1"])
    registry.add_blob(BLOB)
    return registry


def use_both(transport: Transport, endpoint: Endpoint) -> None:
    """A manifest and a range: both clients."""
    repo = repository_at(transport, endpoint)
    assert b"{}" == repo.manifest("v1").content
    with repo.open_blob(Digest.of(BLOB), len(BLOB), 7, 2_000_000) as stream:
        content = bytearray(2_000_000)
        filled = 0
        while count := stream.readinto(memoryview(content)[filled:]):
            filled += count
    assert BLOB[7:2_000_007] == content


def refusal(transport: Transport, endpoint: Endpoint) -> list[str]:
    repo = repository_at(transport, endpoint)
    texts = []
    for call in (lambda: repo.manifest("v1"), lambda: repo.open_blob(Digest.of(BLOB), len(BLOB), 0, 10)):
        with pytest.raises(Unavailable) as caught:
            call()
        texts.append(str(caught.value))
    return texts


def test_a_private_authority_is_trusted_when_named(transport: Transport, authority: Authority) -> None:
    """With its PEM text both clients connect; without it neither does, and the error says what to do."""
    with filled(FaultyRegistry(tls=authority.server)) as registry:
        use_both(transport, endpoint_of(registry, ca_pems=(authority.pem,)))

        for text in refusal(transport, endpoint_of(registry)):
            assert "not trusted" in text
            assert "hosts.toml" in text


def test_a_bundle_of_the_environment_stands_beside_the_systems_directory(
    transport: Transport, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `caBundle` of the chart rests on: SSL_CERT_FILE adds an authority to those of the image."""
    system = trustme.CA()
    public = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    system.issue_cert("127.0.0.1").configure_cert(public)
    file = tmp_path / "system.pem"
    system.cert_pem.write_to_path(str(file))
    openssl = [need_program("openssl", "openssl"), "x509", "-noout", "-hash", "-in", file]
    # As ca-certificates names the files of /etc/ssl/certs.
    name = subprocess.run(openssl, capture_output=True, text=True, check=True).stdout.strip()
    (tmp_path / "certs").mkdir()
    file.rename(tmp_path / "certs" / f"{name}.0")
    (tmp_path / "ca-bundle.crt").write_text(authority.pem)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "certs"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca-bundle.crt"))
    for server in (public, authority.server):
        with filled(FaultyRegistry(tls=server)) as registry:
            use_both(transport, endpoint_of(registry))


def test_a_certificate_for_another_name_is_refused(transport: Transport, authority: Authority) -> None:
    """The name is checked, not only the chain."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.ca.issue_cert("elsewhere.test").configure_cert(server)
    with filled(FaultyRegistry(tls=server)) as registry:
        for text in refusal(transport, endpoint_of(registry, ca_pems=(authority.pem,))):
            assert "not trusted" in text


def test_skip_verify_accepts_anything(transport: Transport, authority: Authority) -> None:
    """The administrator's word, for this host only."""
    with filled(FaultyRegistry(tls=authority.server)) as registry:
        use_both(transport, endpoint_of(registry, skip_verify=True))
        refusal(transport, endpoint_of(registry))


def test_client_certificates_are_shown(transport: Transport, authority: Authority) -> None:
    """One file with both, or two; and not to hosts that are not the endpoint."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.ca.issue_cert("127.0.0.1").configure_cert(server)
    authority.ca.configure_trust(server)
    server.verify_mode = ssl.CERT_REQUIRED
    mine = authority.ca.issue_cert("node.test")
    chain = "".join(pem.bytes().decode() for pem in mine.cert_chain_pems)
    key = mine.private_key_pem.bytes().decode()
    with filled(FaultyRegistry(tls=server)) as registry:
        for certificate in (ClientCertificate(chain, key), ClientCertificate(key + chain)):
            use_both(transport, endpoint_of(registry, ca_pems=(authority.pem,), client_certificates=(certificate,)))
        refusal(transport, endpoint_of(registry, ca_pems=(authority.pem,)))

    trust = Trust(ca_pems=(authority.pem,), client_certificates=(ClientCertificate(chain, key),))
    assert Trust(ca_pems=(authority.pem,)) == trust.elsewhere()


def test_a_plain_server_where_tls_is_expected_is_explained(transport: Transport) -> None:
    """The commonest mistake with private registries."""
    with filled(FaultyRegistry()) as registry:
        endpoint = Endpoint(url=f"https://{registry.host}/v2", origin=True, named=True)
        control, blobs = refusal(transport, endpoint)

    assert "does not speak TLS" in control
    assert "TLS" in blobs


def test_contexts_are_shared_and_bad_pems_named(authority: Authority) -> None:
    """Equal trust, one context; text that is no certificate is an error of the configuration."""
    contexts = TlsContexts()

    assert contexts.context(Trust(ca_pems=(authority.pem,))) is contexts.context(Trust(ca_pems=(authority.pem,)))
    with pytest.raises(InvalidConfig, match="ca"):
        contexts.context(Trust(ca_pems=("no certificate",)))
    other = trustme.CA().issue_cert("x.test").private_key_pem.bytes().decode()
    mine = authority.ca.issue_cert("y.test").cert_chain_pems[0].bytes().decode()
    with pytest.raises(InvalidConfig, match="client") as caught:
        contexts.context(Trust(client_certificates=(ClientCertificate(mine, other),)))
    assert "PRIVATE KEY" not in str(caught.value)
