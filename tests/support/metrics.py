"""A scrape as Prometheus does it, and questions to what it got."""

from __future__ import annotations

import http.client
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    text: str
    families: tuple[Metric, ...]

    def samples(self, name: str, **labels: str) -> list[Sample]:
        """Those of this name that have at least these labels."""
        return [
            sample
            for family in self.families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]

    def value(self, name: str, **labels: str) -> float:
        (sample,) = self.samples(name, **labels)
        return sample.value

    def of(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """The values by one label."""
        return {sample.labels[label]: sample.value for sample in self.samples(name, **labels)}


def scrape(port: int) -> Scrape:
    """Raises OSError or HTTPException when it is not answered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    assert answer.status == 200, text
    return Scrape(text=text, families=tuple(text_string_to_metric_families(text)))
