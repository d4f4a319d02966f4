"""Patterns as kubelet understands them, which is told by its own documentation's examples."""

from __future__ import annotations

import pytest

from fuse.credentials.matching import matches, of_image


@pytest.mark.parametrize(
    ("pattern", "image"),
    [
        ("123456789.dkr.ecr.us-east-1.amazonaws.com", "123456789.dkr.ecr.us-east-1.amazonaws.com/m"),
        ("*.dkr.ecr.*.amazonaws.com", "123456789.dkr.ecr.us-east-1.amazonaws.com/team/m"),
        ("*.azurecr.io", "contoso.azurecr.io/m"),
        ("*.*.registry.io", "a.b.registry.io/m"),
        ("registry.io:8080/path", "registry.io:8080/path"),
        ("registry.io:8080/path", "registry.io:8080/path/m"),
        ("registry.io/path/", "registry.io/path/m"),
        ("app*.k8s.io", "app1.k8s.io/m"),
        ("k8s.*", "k8s.io/m"),
        ("reg[0-9].k8s.io", "reg7.k8s.io/m"),
        ("reg[^0-9].k8s.io", "regx.k8s.io/m"),
        ("https://index.docker.io/v1/", "docker.io/library/m"),
        ("docker.io", "docker.io/team/m"),
        ("https://registry.io/v2/", "registry.io/m"),
        ("REGISTRY.io", "registry.io/m"),
        ("[::1]:5000", "[::1]:5000/m"),
    ],
)
def test_what_a_pattern_means(pattern: str, image: str) -> None:
    """Wildcards within a label, the same port, the beginning of the path."""
    assert matches(pattern, image)


@pytest.mark.parametrize(
    ("pattern", "image"),
    [
        ("*.io", "sub.registry.io/m"),
        ("*.registry.io", "registry.io/m"),
        ("registry.io", "registry.io:5000/m"),
        ("registry.io:5000", "registry.io/m"),
        ("registry.io:*", "registry.io:5000/m"),
        ("registry.io/team", "registry.io/other"),
        ("registry.io/team", "registry.io"),
        ("registry.io/team", "registry.io/team-b/m"),
        ("registry.io/*", "registry.io/team/m"),
        ("registry.io", "registry.io.evil.example/m"),
        ("registry.io", "evil.example/registry.io/m"),
        ("*", "registry.io/m"),
        ("reg[^0-9].k8s.io", "reg7.k8s.io/m"),
        ("", "registry.io/m"),
    ],
)
def test_what_it_does_not_mean(pattern: str, image: str) -> None:
    """No wildcard crosses a dot, or stands in a port or a path; a path ends where a component does."""
    assert not matches(pattern, image)


def test_the_most_specific_comes_first() -> None:
    """Longer paths before shorter ones, names before wildcards."""
    patterns = ["*.registry.io", "a.registry.io", "a.registry.io/team", "*.registry.io/team/m", "other.io"]

    assert ["*.registry.io/team/m", "a.registry.io/team", "a.registry.io", "*.registry.io"] == of_image(
        patterns, "a.registry.io/team/m"
    )
