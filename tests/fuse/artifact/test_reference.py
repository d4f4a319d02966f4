"""References: docker's grammar and defaults, the digest before the tag."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse.artifact.digest import Digest
from fuse.artifact.reference import Reference
from fuse.errors import InvalidReference

HEX = "a" * 64


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("model", "docker.io/library/model:latest"),
        ("ai/model", "docker.io/ai/model:latest"),
        ("ai/model:7b", "docker.io/ai/model:7b"),
        ("index.docker.io/model", "docker.io/library/model:latest"),
        ("localhost/model", "localhost/model:latest"),
        ("localhost:5000/model", "localhost:5000/model:latest"),
        ("registry.example.com/a/b/c:v1", "registry.example.com/a/b/c:v1"),
        ("registry.example.com:443/a", "registry.example.com:443/a:latest"),
        ("Registry.Example.com/a", "Registry.Example.com/a:latest"),
        ("[::1]:5000/a:v1", "[::1]:5000/a:v1"),
        ("[fe80::1]/a", "[fe80::1]/a:latest"),
        (f"r.io/a@sha256:{HEX}", f"r.io/a@sha256:{HEX}"),
        (f"r.io/a:v1@sha256:{HEX}", f"r.io/a:v1@sha256:{HEX}"),
        (f"r.io:5000/a@sha512:{HEX}{HEX}", f"r.io:5000/a@sha512:{HEX}{HEX}"),
        ("r.io/a__b/c-d/e.f--g:V_1.2-x", "r.io/a__b/c-d/e.f--g:V_1.2-x"),
    ],
)
def test_references_get_dockers_defaults(text: str, canonical: str) -> None:
    """And the canonical form is read back as itself."""
    reference = Reference.parse(text)

    assert canonical == str(reference)
    assert reference == Reference.parse(canonical)


def test_the_digest_wins_over_the_tag() -> None:
    """Of `repo:tag@digest`, the digest is asked for."""
    assert f"sha256:{HEX}" == Reference.parse(f"r.io/a:v1@sha256:{HEX}").target
    assert "v1" == Reference.parse("r.io/a:v1").target


def test_a_reference_can_be_pinned() -> None:
    """It keeps its tag, for people."""
    pinned = Reference.parse("r.io/a:v1").pinned(Digest.parse(f"sha256:{HEX}"))

    assert f"r.io/a:v1@sha256:{HEX}" == str(pinned)
    assert "r.io/a" == pinned.name


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "@", "/", "r.io/", "/a", ":v1", "r.io/a:", "r.io/a@", "r.io//a", "r.io/a/", "r.io/A", "r.io/a b"),
        *("https://r.io/a", "oci://r.io/a:v1", "r.io/a:v1:v2", "r.io/a@sha256:abc", "r.io/a@md5:" + "a" * 32),
        *(
            "r.io/../a",
            "r.io/a/..",
            "r.io/.a",
            "r.io/a_",
            "r.io/a___b",
            "r.io:port/a",
            "r.io:0/a",
            "r.io:65536/a",
            "r.io:123456/a",
        ),
        *(
            "-r.io/a",
            "r..io/a",
            "r.io/a:-v",
            "r.io/a:" + "v" * 129,
            "r.io/" + "a" * 256,
            "r.io/a\n",
            "r.io/a:v1\n",
            "r.io\n/a",
        ),
        *(
            "user:password@r.io/a",
            "r.io/ä",
            "r.io/a?x=1",
            "r.io/a#x",
            f"r.io/a@sha256:{HEX}@sha256:{HEX}",
            "a" * 100_000,
            "R.io",
        ),
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    """With an error that is short, names what was given and says what is expected."""
    with pytest.raises(InvalidReference) as caught:
        Reference.parse(text)
    assert len(str(caught.value)) < 700
    assert caught.value.where
    assert caught.value.fix


@pytest.mark.parametrize(
    "text", ["user:hunter2@r.io/a", "https://user:hunter2@r.io/a:v1", "user:hunter2@r.io/a@sha256:x"]
)
def test_a_password_is_not_repeated(text: str) -> None:
    """Errors end in logs and events."""
    with pytest.raises(InvalidReference) as caught:
        Reference.parse(text)
    assert "hunter2" not in str(caught.value)


@given(text=st.one_of(st.text(max_size=80), st.from_regex(r"[a-zA-Z0-9.:/@_\[\]-]{1,60}", fullmatch=True)))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    """Nothing but InvalidReference comes out, and the canonical form is a fixed point."""
    try:
        reference = Reference.parse(text)
    except InvalidReference:
        return
    assert reference == Reference.parse(str(reference))
    assert ".." not in reference.repository.split("/")
