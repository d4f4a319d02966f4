"""Requests as values: attributes, secrets, capabilities, identifiers, paths."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi import attributes, requests
from csi.attributes import Attributes
from csi.pb import csi_pb2 as pb
from csi.targets import Target, TargetRules
from fuse.errors import InvalidReference, InvalidRequest, MountFailed, WeightlessError
from fuse.filesystem.table import View
from tests.csi.fakes import PASSWORD, REFERENCE
from tests.csi.harness import capability, publish_request

KUBELET = Path("/var/lib/kubelet")
RULES = TargetRules(KUBELET)
TARGET = f"{KUBELET}/pods/0a1b-2c/volumes/kubernetes.io~csi/model/mount"
PREFIXES = ("", attributes.PREFIX, attributes.MODELPACK_PREFIX)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_attribute_is_known_under_every_prefix(prefix: str) -> None:
    """Bare, under our name, and under the ModelPack driver's."""
    context = {
        f"{prefix}reference": REFERENCE,
        f"{prefix}prefetch": "none",
        f"{prefix}verify": "strict",
        f"{prefix}exclude-file-patterns": '["*.onnx", "!keep.onnx"]',
        f"{prefix}exclude-model-weights": "true",
    }
    view = View(exclude=("*.onnx", "!keep.onnx"), exclude_weights=True)
    expected = Attributes(reference=REFERENCE, view=view, prefetch="none", verify="strict")
    assert expected == attributes.parse(context)


def test_defaults() -> None:
    """All files, and everything is fetched; empty values count as not given; a reference is made canonical."""
    parsed = attributes.parse({"reference": "llama", "prefetch": "", "exclude-file-patterns": ""})
    assert parsed == Attributes(reference="docker.io/library/llama:latest", view=View(), prefetch="full")


def test_a_way_to_verify_that_is_not_known_is_refused() -> None:
    """A misspelt `strict` is not silently lazy."""
    with pytest.raises(InvalidRequest, match="not a way to verify"):
        attributes.parse({"reference": REFERENCE, "verify": "Strict"})


def test_the_same_key_twice() -> None:
    """Equal values are one; different ones are refused."""
    twice = {"reference": REFERENCE, f"{attributes.PREFIX}reference": REFERENCE}
    assert attributes.parse(twice).reference == REFERENCE
    with pytest.raises(InvalidRequest, match="differ"):
        attributes.parse({**twice, f"{attributes.MODELPACK_PREFIX}reference": "other.example.com/a/b:v1"})


def test_keys_of_kubernetes_and_for_migration_are_accepted() -> None:
    """What kubelet and external-provisioner add, and what the ModelPack driver knows and we do not need."""
    context = {
        "reference": REFERENCE,
        "csi.storage.k8s.io/pod.name": "p",
        "csi.storage.k8s.io/serviceAccount.tokens": "{}",
        "storage.kubernetes.io/csiProvisionerIdentity": "x",
        f"{attributes.MODELPACK_PREFIX}check-disk-quota": "true",
        f"{attributes.MODELPACK_PREFIX}type": "image",
    }
    assert attributes.parse(context).reference == REFERENCE


@pytest.mark.parametrize(
    ("context", "words"),
    [
        ({}, "no attribute reference"),
        ({"reference": REFERENCE, "prefech": "full"}, "'prefech'.*known are reference, prefetch"),
        ({"reference": REFERENCE, "csi.weightless.dev/plain-http": "true"}, "csi.weightless.dev/plain-http"),
        ({"reference": REFERENCE, "model.csi.modelpack.org/mount-id": "1"}, "mount-id"),
        ({"reference": REFERENCE, "check-disk-quota": "true"}, "check-disk-quota"),
        ({"reference": REFERENCE, "example.com/reference": "x"}, "example.com/reference"),
        ({"reference": REFERENCE, "evilk8s.io/x": "x"}, "evilk8s.io/x"),
        ({"reference": REFERENCE, "prefetch": "some"}, "'some'.*full or none"),
        ({"reference": REFERENCE, "exclude-model-weights": "perhaps"}, "exclude-model-weights"),
        ({"reference": REFERENCE, "exclude-file-patterns": "*.onnx"}, "JSON array"),
        ({"reference": REFERENCE, "exclude-file-patterns": "[1]"}, "JSON array"),
        ({"reference": REFERENCE, "exclude-file-patterns": '{"a": 1}'}, "JSON array"),
        ({"reference": REFERENCE, "model.csi.modelpack.org/type": "disk"}, "'disk'"),
        ({"reference": REFERENCE, "exclude-file-patterns": f'["{"x" * 4096}"]'}, "4 KiB"),
    ],
)
def test_a_bad_attribute_is_named(context: dict[str, str], words: str) -> None:
    """INVALID_ARGUMENT's words say which key, and what is known."""
    with pytest.raises(InvalidRequest, match=words):
        attributes.parse(context)


@pytest.mark.parametrize(
    ("reference", "words"),
    [("https://registry.example.com/a/b", "scheme"), ("", "is empty.*left unset"), ("a/b:1\n", "white space")],
)
def test_a_bad_reference_is_told_as_one(reference: str, words: str) -> None:
    """The attribute is named beside the reference."""
    with pytest.raises(InvalidReference, match=f"attribute reference.*{words}"):
        attributes.parse({"reference": reference})


def test_secrets_are_checked_without_showing_them() -> None:
    """The three keys are known; others are named, their values are not."""
    known = {".dockerconfigjson": "{}", "username": "u", "password": PASSWORD}
    assert attributes.check_secrets({**known, "csi.storage.k8s.io/serviceAccount.tokens": "t"}) == known
    with pytest.raises(InvalidRequest) as caught:
        attributes.check_secrets({"pasword": PASSWORD})
    assert "'pasword'" in str(caught.value)
    with pytest.raises(InvalidRequest, match="more than 1 MiB"):
        attributes.check_secrets({"password": "x" * (1 << 20)})
    assert PASSWORD not in str(caught.value)


def test_a_request_shows_no_secret() -> None:
    """Neither its text nor what is stored of it holds the password."""
    request = requests.publish(publish_request(TARGET, secrets={"username": "u", "password": PASSWORD}), RULES)
    assert PASSWORD not in repr(request)
    assert request.secrets["password"] == PASSWORD
    assert request.pod == "default/reader"


def test_parameters_ignore_secrets_and_pod() -> None:
    """A repeated publish is the same volume whatever its secrets; an in-flight request is not."""
    plain = requests.publish(publish_request(TARGET), RULES)
    other = requests.publish(publish_request(TARGET, secrets={"username": "u", "password": "p"}), RULES)
    assert plain.parameters == other.parameters
    assert plain != other
    assert plain.parameters != requests.publish(publish_request(TARGET, readonly=False), RULES).parameters


@pytest.mark.parametrize("mode", [mode for mode in pb.VolumeCapability.AccessMode.Mode.values() if mode])
def test_every_access_mode_is_accepted(mode: int) -> None:
    """Callers ask for writers by default; what they get is read-only."""
    assert requests.publish(publish_request(TARGET, volume_capability=capability(mode)), RULES).access_mode == mode


@pytest.mark.parametrize(
    "broken",
    [
        pb.VolumeCapability(access_mode=pb.VolumeCapability.AccessMode(mode=1)),
        pb.VolumeCapability(mount=pb.VolumeCapability.MountVolume()),
        pb.VolumeCapability(
            block=pb.VolumeCapability.BlockVolume(), access_mode=pb.VolumeCapability.AccessMode(mode=1)
        ),
        pb.VolumeCapability(
            mount=pb.VolumeCapability.MountVolume(mount_flags=["ro", "uid=0"]),
            access_mode=pb.VolumeCapability.AccessMode(mode=1),
        ),
        pb.VolumeCapability(
            mount=pb.VolumeCapability.MountVolume(volume_mount_group="7"),
            access_mode=pb.VolumeCapability.AccessMode(mode=1),
        ),
        capability(8),
    ],
    ids=["no access type", "no mode", "block", "mount flags", "group", "a mode of a later CSI"],
)
def test_a_capability_that_cannot_be_given_is_refused(broken: pb.VolumeCapability) -> None:
    """And the mount flags, which may be sensitive, are not repeated."""
    with pytest.raises(InvalidRequest) as caught:
        requests.publish(publish_request(TARGET, volume_capability=broken), RULES)
    assert "uid=0" not in str(caught.value)


@pytest.mark.parametrize("volume_id", ["", "a\nb", "a\0b", "x" * 1025])
def test_a_bad_volume_id_is_refused(volume_id: str) -> None:
    """Missing, with control characters, endless."""
    with pytest.raises(InvalidRequest):
        requests.publish(publish_request(TARGET, volume_id=volume_id), RULES)


@pytest.mark.parametrize("volume_id", ["../../etc", "x" * 128, "a/b", "registry/a:b@c", "ü"])
def test_a_strange_volume_id_becomes_no_path(volume_id: str) -> None:
    """The name of its record is a hash."""
    request = requests.publish(publish_request(TARGET, volume_id=volume_id), RULES)
    assert len(request.key.name) == 40
    assert set(request.key.name) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "path",
    [
        TARGET,
        f"{TARGET}/",
        f"{KUBELET}/plugins/kubernetes.io/csi/x/target",
        f"{KUBELET}/plugins/kubernetes.io/csi/csi.weightless.dev/abc/globalmount",
        f"{KUBELET}/pods/0a/volumes/kubernetes.io~csi/name with blanks/mount",
    ],
)
def test_paths_of_kubelet_are_accepted(path: str) -> None:
    """Both shapes, with or without a slash at the end."""
    assert str(RULES.parse(path).path) == path.rstrip("/")


@pytest.mark.parametrize(
    "path",
    [
        "relative/mount",
        "/etc",
        "/",
        str(KUBELET),
        f"{KUBELET}x/pods/0a/volumes/kubernetes.io~csi/m/mount",
        f"{KUBELET}/pods/0a/volumes/kubernetes.io~csi/m",
        f"{KUBELET}/pods/0a/volumes/kubernetes.io~csi/m/mount/deeper",
        f"{KUBELET}/pods/0a/volumes/kubernetes.io~empty-dir/m/mount",
        f"{KUBELET}/pods/0a/volumes/kubernetes.io~csi/../mount",
        f"{KUBELET}/pods/../volumes/kubernetes.io~csi/m/mount",
        f"{KUBELET}/pods/0a/../0b/volumes/kubernetes.io~csi/m/mount",
        f"{KUBELET}/pods//volumes/kubernetes.io~csi/m/mount",
        f"{KUBELET}/pods/0a/volumes/kubernetes.io~csi/a\0b/mount",
        f"{KUBELET}/pods/0a/volumes/kubernetes.io~csi/a\nb/mount",
        f"{KUBELET}/plugins/kubernetes.io/csi",
        f"{KUBELET}/plugins/kubernetes.io/csi/../../x",
        f"{KUBELET}/plugins/csi.weightless.dev/mounts/x",
        f"{KUBELET}/plugins/kubernetes.io/csi/{'x' * 4096}",
    ],
)
def test_other_paths_are_refused(path: str) -> None:
    """Outside of kubelet's directory, of another shape, with dots, empty components or control characters."""
    with pytest.raises(InvalidRequest):
        RULES.parse(path)


@given(st.text(max_size=80))
def test_a_path_that_passes_stays_below_kubelet(text: str) -> None:
    """Whatever stands behind kubelet's directory: it is refused, or it is what it says, and holds no dots."""
    for prefix in (f"{KUBELET}/pods/a/volumes/kubernetes.io~csi/", f"{KUBELET}/plugins/kubernetes.io/csi/"):
        try:
            target = RULES.parse(prefix + text)
        except WeightlessError:
            continue
        assert ".." not in target.path.parts
        assert target.path.is_relative_to(KUBELET)


def test_kubelets_directory_may_be_a_link(tmp_path: Path) -> None:
    """Both its names are accepted; the target is named as the mount table names it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "kubelet").symlink_to("data")
    rules = TargetRules(tmp_path / "kubelet")
    tail = "pods/0a/volumes/kubernetes.io~csi/m/mount"
    for root in ("kubelet", "data"):
        assert rules.parse(f"{tmp_path}/{root}/{tail}").path == tmp_path / "data" / tail


def test_a_link_below_kubelet_is_not_followed(tmp_path: Path) -> None:
    """Neither for making nor for removing: the directory outside stays as it is."""
    outside = tmp_path / "outside"
    (outside / "mount").mkdir(parents=True)
    parent = tmp_path / "k" / "pods" / "a" / "volumes" / "kubernetes.io~csi"
    parent.mkdir(parents=True)
    (parent / "m").symlink_to(outside)
    target = TargetRules(tmp_path / "k").parse(str(parent / "m" / "mount"))
    with pytest.raises(MountFailed, match="symbolic link"):
        target.make()
    target.remove()
    assert (outside / "mount").is_dir()


def test_making_and_removing_a_target(tmp_path: Path) -> None:
    """Both may be repeated; what is not empty is never removed."""
    (tmp_path / "pods/a/volumes/kubernetes.io~csi/m").mkdir(parents=True)
    target = Target(tmp_path, "pods/a/volumes/kubernetes.io~csi/m/mount")
    target.make()
    target.make()
    (target.path / "file").touch()
    with pytest.raises(MountFailed, match="see what is in it"):
        target.remove()
    (target.path / "file").unlink()
    target.remove()
    target.remove()
    assert not target.path.exists()


def test_a_target_without_its_parent_is_refused(tmp_path: Path) -> None:
    """Kubelet makes the parent; a missing one is a mistake, and nothing is made."""
    target = Target(tmp_path, "pods/a/volumes/kubernetes.io~csi/m/mount")
    with pytest.raises(MountFailed, match="parent must exist"):
        target.make()
    assert list(tmp_path.iterdir()) == []


LABEL = "system_u:object_r:container_file_t:s0"


def labelled(*flags: str) -> requests.PublishRequest:
    return requests.publish(publish_request(TARGET, volume_capability=capability(flags=flags)), RULES)


def test_a_context_among_the_mount_options_is_the_label() -> None:
    """With kubelet's quotes and without, beside harmless options; what is asked for twice is one."""
    with_quotes, without = f'context="{LABEL}:c1,c2"', f"context={LABEL}:c1,c2"
    for flags in ((with_quotes,), (without,), ("ro", with_quotes, without, "noexec")):
        assert labelled(*flags).label == f"{LABEL}:c1,c2"
    assert labelled("ro").label == ""


def test_a_repeated_publish_with_another_label_is_another_request() -> None:
    """The quotes are no part of it; without a label, a request is what it was for earlier versions."""
    first = labelled(f'context="{LABEL}:c1,c2"')
    assert first.parameters == labelled(f"context={LABEL}:c1,c2").parameters
    others = [labelled(), labelled(f"context={LABEL}"), labelled(f"context={LABEL}:c1,c3")]
    assert len({request.parameters for request in (first, *others)}) == 4
    assert labelled("ro").parameters == requests.publish(publish_request(TARGET), RULES).parameters


@pytest.mark.parametrize(
    "flags",
    [
        ("context=canary",),
        ("context=",),
        (f'context="{LABEL}',),
        (f'context="{LABEL}",uid=canary',),
        (f'context="{LABEL}",allow_other="canary"',),
        (f"context={LABEL},canary",),
        (f"context={LABEL}", f"context={LABEL}:c1,canary"),
        (f"fscontext={LABEL}",),
        (f"defcontext={LABEL}",),
        (f"rootcontext={LABEL}",),
        (f"Context={LABEL}",),
    ],
)
def test_a_context_that_is_none_is_refused(flags: tuple[str, ...]) -> None:
    """Whoever writes a PersistentVolume gives the kernel no other options that way; nothing of it is repeated."""
    with pytest.raises(InvalidRequest) as caught:
        labelled(*flags)
    assert caught.value.where.startswith("volume_capability")
    assert "canary" not in str(caught.value)
