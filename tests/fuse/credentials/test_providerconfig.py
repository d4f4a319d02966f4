"""kubelet's configuration file, in both of its languages, and what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fuse.credentials.providerconfig import load, parse_duration
from fuse.errors import InvalidConfig

FILE = """
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: ecr-credential-provider
    matchImages: ["*.dkr.ecr.*.amazonaws.com"]
    defaultCacheDuration: 12h
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    args: [get-credentials]
    env:
      - name: AWS_PROFILE
        value: canary-profile
    tokenAttributes:
      serviceAccountTokenAudience: sts.amazonaws.com
      requireServiceAccount: true
      cacheType: ServiceAccount
      requiredServiceAccountAnnotationKeys: [eks.amazonaws.com/role-arn]
    laterField: of a newer kubelet
"""


def provider(**changes: object) -> dict[str, object]:
    plain = {
        "name": "plain",
        "matchImages": ["registry.io"],
        "defaultCacheDuration": "0",
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1beta1",
    }
    return plain | changes


def written(directory: Path, *providers: object, **changes: object) -> Path:
    path = directory / "config.json"
    content = {
        "apiVersion": "kubelet.config.k8s.io/v1",
        "kind": "CredentialProviderConfig",
        "providers": providers,
    }
    path.write_text(json.dumps(content | changes))
    return path


def test_kubelets_file_is_understood(tmp_path: Path) -> None:
    """All of its fields, and those of a newer kubelet are let be."""
    (tmp_path / "config.yaml").write_text(FILE)

    (found,) = load(tmp_path / "config.yaml")

    assert ("ecr-credential-provider", 12 * 3600.0, ("get-credentials",)) == (
        found.name,
        found.default_cache_s,
        found.args,
    )
    assert found.token_attributes is not None
    assert "ServiceAccount" == found.token_attributes.cache_type
    assert "canary" not in repr(found)


def test_a_directory_is_the_sum_of_its_files(tmp_path: Path) -> None:
    """In the order of their names; other files are none of them."""
    (tmp_path / "b.yaml").write_text(FILE)
    written(tmp_path, provider()).rename(tmp_path / "a.json")
    (tmp_path / "README").write_text("not a configuration")

    assert ["plain", "ecr-credential-provider"] == [each.name for each in load(tmp_path)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "../evil"}, "name of a file"),
        ({"name": ".."}, "name of a file"),
        ({"matchImages": []}, "matchImages is empty"),
        ({"args": ["a\0b"]}, "must be text"),
        ({"env": [{"name": "A", "value": "\ud800"}]}, "must be text"),
        ({"env": [{"name": "A=B", "value": "c"}]}, "no variable"),
        ({"defaultCacheDuration": "soon"}, "defaultCacheDuration"),
        ({"defaultCacheDuration": None}, "default"),
        ({"apiVersion": "v7"}, "apiVersion 'v7' is not known"),
        ({"tokenAttributes": {"serviceAccountTokenAudience": "a", "requireServiceAccount": True}}, "need apiVersion"),
        (
            {
                "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
                "tokenAttributes": {
                    "serviceAccountTokenAudience": "a",
                    "requireServiceAccount": False,
                    "requiredServiceAccountAnnotationKeys": ["x/y"],
                },
            },
            "need requireServiceAccount",
        ),
        (
            {
                "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
                "tokenAttributes": {"serviceAccountTokenAudience": "", "requireServiceAccount": True},
            },
            "serviceAccountTokenAudience is empty",
        ),
    ],
)
def test_what_kubelet_would_refuse_is_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    """With the file, the provider and what is wrong."""
    with pytest.raises(InvalidConfig, match=words) as caught:
        load(written(tmp_path, provider(**changes)))
    assert "config.json" in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    """Another kind, another version, no YAML, a name twice, no provider, no file."""
    for path in (
        written(tmp_path, provider(), kind="KubeletConfiguration"),
        written(tmp_path, provider(), apiVersion="kubelet.config.k8s.io/v9"),
        written(tmp_path, provider(), provider()),
        written(tmp_path),
        tmp_path / "absent.yaml",
    ):
        with pytest.raises(InvalidConfig):
            load(path)
    for text in ("providers: [canary\n  x: {", "a: !!int canary", "a: !!timestamp canary", "a: !!float canary"):
        (tmp_path / "broken.yaml").write_text(text)
        with pytest.raises(InvalidConfig, match="neither YAML nor JSON") as caught:
            load(tmp_path / "broken.yaml")
        assert "canary" not in str(caught.value)


def test_a_directory_that_goes_while_it_is_read_is_a_file_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kubelet swaps directories; the last that was understood stays in force (`Reread`)."""

    def gone(path: Path) -> None:
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(Path, "iterdir", gone)
    with pytest.raises(InvalidConfig, match="cannot be read: No such file"):
        load(tmp_path)


def test_a_date_is_text(tmp_path: Path) -> None:
    """As to kubelet, even one that is none."""
    for text in ("2020-01-02", "2020-13-45"):
        (tmp_path / "config.yaml").write_text(FILE.replace("canary-profile", text))
        (found,) = load(tmp_path / "config.yaml")
        assert text == found.env[0].value


def test_durations_are_gos() -> None:
    """As kubelet reads them."""
    assert [0.0, 0.0, 43200.0, 5400.0, 0.5] == [parse_duration(text) for text in ("0", "0s", "12h", "1h30m", "500ms")]
    for text in ("", "12", "1d", "h", "1h x"):
        with pytest.raises(ValueError, match="not a duration"):
            parse_duration(text)
