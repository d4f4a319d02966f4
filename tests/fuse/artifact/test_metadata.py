"""Modes and times: advice that is taken where it can be read."""

from __future__ import annotations

import datetime as dt
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse.artifact.digest import Digest
from fuse.artifact.manifest import Descriptor, Manifest
from fuse.artifact.metadata import MAX_TIME_NS, created, of_file, parse_time


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:01.000000002Z", 1_000_000_002),
        ("1970-01-01T00:00:01.5+00:00", 1_500_000_000),
        ("1970-01-01T01:00:00+01:00", 0),
        ("2025-01-01t00:00:00z", 1_735_689_600 * 10**9),
        ("0001-01-01T00:00:00Z", None),
        ("9999-12-31T23:59:59Z", MAX_TIME_NS),
        ("1970-01-01T00:00:00.1234567891Z", 123_456_789),
        ("1970-13-01T00:00:00Z", None),
        ("1970-01-01", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_times_are_rfc_3339(text: str, expected: int | None) -> None:
    """To the nanosecond; Go's zero time is none."""
    assert expected == parse_time(text)


@given(seconds=st.integers(0, 7_000_000_000), microseconds=st.integers(0, 999_999))
def test_times_are_those_that_python_writes(seconds: int, microseconds: int) -> None:
    """Against datetime."""
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC).replace(microsecond=microseconds)

    assert seconds * 10**9 + microseconds * 1000 == parse_time(moment.isoformat())


def layer(**metadata: object) -> Descriptor:
    return described({"org.cncf.model.file.metadata+json": json.dumps(metadata)})


def described(annotations: dict[str, str]) -> Descriptor:
    return Descriptor(media_type="", digest=Digest.of(b""), size=0, annotations=annotations)


def test_a_files_mode_and_time_come_from_its_annotation() -> None:
    """The size and typeflag there are not believed, Go's mode bits beyond permissions left out."""
    assert (0o644, 10**9) == of_file(layer(mode=0o644, mtime="1970-01-01T00:00:01Z", size=99, typeflag=53))
    assert (0o755, None) == of_file(layer(mode=0o20000000755))
    assert (None, 0) == of_file(layer(mtime="1970-01-01T00:00:00Z"))
    assert (0o600, None) == of_file(described({"org.cnai.model.file.metadata+json": '{"mode":384}'}))


@pytest.mark.parametrize("text", ["", "null", "{", '{"mode":"x"}', "[1]", '{"mtime":5}', "[" * 100_000])
def test_an_annotation_that_cannot_be_read_says_nothing(text: str) -> None:
    """It is advice, so it is no reason to refuse a model."""
    assert (None, None) == of_file(described({"org.cncf.model.file.metadata+json": text}))


@pytest.mark.parametrize(
    ("config", "annotation", "expected"),
    [
        (b'{"descriptor":{"createdAt":"1970-01-01T00:00:05Z"}}', "", 5 * 10**9),
        (b"{}", "", 0),
        (b"{}", "1970-01-01T00:00:07Z", 7 * 10**9),
        (b'{"descriptor":null}', "", 0),
        (b"not json", "", 0),
        (b"\xff", "", 0),
        (None, "1970-01-01T00:00:07Z", 7 * 10**9),
        (None, "never", 0),
    ],
)
def test_the_artifacts_own_time_is_the_configs_then_the_annotations(
    config: bytes | None, annotation: str, expected: int
) -> None:
    """AIKit's config is `{}`."""
    annotations = {"org.opencontainers.image.created": annotation} if annotation else {}
    manifest = Manifest(
        digest=Digest.of(b""), artifact_type="", config=described({}), layers=(), annotations=annotations
    )

    assert expected == created(manifest, config)
