"""Traces of the real processes, as a collector gets them: from the publish to the ranged request."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.leaks import Sandbox
from tests.support.node import Node
from tests.support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.slow]


class Collector:
    """What has been received, by process and name."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        self.content = b""
        self.port = 0

    def take(self, body: bytes) -> None:
        self.content += body
        for of_process in ExportTraceServiceRequest.FromString(body).resource_spans:
            attributes = {each.key: each.value.string_value for each in of_process.resource.attributes}
            assert attributes["service.name"] == "models"
            for scope in of_process.scope_spans:
                self.spans += [(attributes["weightless.process"], span) for span in scope.spans]

    def find(self, process: str, name: str) -> Span | None:
        return next((span for who, span in self.spans if (who, span.name) == (process, name)), None)


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.take(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Not in the output of tests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_trace_leads_from_the_publish_through_the_fetcher_to_the_registry(
    sandbox: Sandbox, named: str, reference: str
) -> None:
    """The fetcher's spans, of an unprivileged process, are below the plugin's; a transfer is linked to its publish."""
    with collecting() as collector:
        node = Node(sandbox, "--certs-dir", named)
        node.environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}",
            "OTEL_SERVICE_NAME": "models",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }
        with node:
            target = node.target("pod-1")
            node.publish("csi-1", target, {"reference": reference, "prefetch": "none"})
            assert (target / "tokenizer/merges.txt").stat().st_size
            (target / "tokenizer/merges.txt").read_bytes()
            published = until(lambda: collector.find("plugin", "csi.v1.Node/NodePublishVolume"), "the publish is told")
            resolve = until(lambda: collector.find("plugin", "weightless.resolve"), "the plugin's resolve is told")
            fetched = until(lambda: collector.find("fetcher", "weightless.fetcher.resolve"), "the fetcher's is told")
            transfer = until(lambda: collector.find("fetcher", "weightless.transfer"), "the transfer is told")
            node.unpublish("csi-1", target)
        assert fetched.trace_id == resolve.trace_id == published.trace_id != transfer.trace_id
        assert fetched.parent_span_id == resolve.span_id
        assert [link.trace_id for link in transfer.links] == [published.trace_id]
        requests = [span for who, span in collector.spans if (who, span.name) == ("fetcher", "GET")]
        assert {span.parent_span_id for span in requests} >= {fetched.span_id, transfer.span_id}
        for span in requests:
            keys = {each.key for each in span.attributes}
            assert keys == {"http.request.method", "server.address", "server.port", "http.response.status_code"}
        assert [] == node.leftovers()
