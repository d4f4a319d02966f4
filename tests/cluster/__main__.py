"""`make cluster-test`: sees a real kubelet use the driver.

With KUBECONFIG: runs the tests in that cluster. Without it: builds the programs of a cluster and the images, which needs the
network, makes a machine of its own, which has none, and in it runs itself, with the KUBECONFIG of a cluster that `own.py` has
started. Arguments go to pytest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.cluster import images, machine, own, programs, settings
from tests.cluster.installation import MANIFESTS, rendered
from tests.cluster.kubernetes import Object
from tests.cluster.node import PAUSE
from tests.deploy.image import Buildah

SIDECARS: Final = "WEIGHTLESS_CLUSTER_SIDECARS"
"""A directory with programs that are taken in place of those that are built here; those that it does not have are."""

_SIDECARS: Final = {
    "csi-node-driver-registrar": "registrar",
    "livenessprobe": "livenessprobe",
    "csi-provisioner": "csi-provisioner",
}
"""Images, which have the names of their programs, and what is built for them."""


def main(arguments: list[str]) -> int:
    if "KUBECONFIG" in os.environ:
        settings.Settings.from_environment()  # complains at once of what is missing
        pytest = [sys.executable, "-m", "pytest", "tests/cluster", "-p", "no:cacheprovider", *arguments]
        return subprocess.run(pytest, env={**os.environ, settings.RUNS: "yes"}, check=False).returncode
    if os.geteuid() != 0:
        raise SystemExit("a machine of its own needs root; or name a cluster in KUBECONFIG")
    with tempfile.TemporaryDirectory(
        prefix="weightless-cluster-images-", dir=os.environ.get("TMPDIR", "/var/tmp")
    ) as directory:
        archives = _images(Path(directory), programs.build())
        subprocess.run(["scripts/helm.sh"], stdout=subprocess.DEVNULL, check=True)
        logs = Path(tempfile.mkdtemp(prefix="weightless-cluster-logs-"))
        os.environ[own.IMAGES] = json.dumps({name: str(path) for name, path in archives.items()})
        code = machine.run([sys.executable, "-m", "tests.cluster.own", *arguments], logs=logs)
    if code == 0:
        subprocess.run(["rm", "-r", str(logs)], check=True)
    else:
        print(f"cluster-test: what each program wrote is in {logs}", file=sys.stderr)
    return code


def _images(directory: Path, built: programs.Programs) -> dict[str, Path]:
    """All that the manifests ask for, and what nobody asks for by name: archives by the names of images."""
    wanted = _names(rendered(built.kubernetes / "kubectl", MANIFESTS))
    busybox = Path("/bin/busybox")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    small = {
        PAUSE: ({"bin/busybox": busybox}, ["/bin/busybox", "sleep", "2147483647"]),
        images.READER: ({"bin/busybox": busybox}, ["/bin/sh"]),
    }
    for image, built_as in _SIDECARS.items():
        given = Path(os.environ.get(SIDECARS, "/nowhere")).absolute() / image
        program = given if given.exists() else built.sidecars / built_as
        print(f"cluster-test: {wanted[image]} is {program}", flush=True)
        small[wanted[image]] = ({image: program}, [f"/{image}"])
    archives = {
        name: images.write_image(
            directory / f"{number}.tar",
            name=name,
            files=files,
            links={f"bin/{applet}": "busybox" for applet in applets if applet != "busybox"}
            if "bin/busybox" in files
            else {},
            entrypoint=entrypoint,
        )
        for number, (name, (files, entrypoint)) in enumerate(small.items())
    }
    driver = wanted["weightless"]
    return {**archives, driver: _driver_image(directory / "driver.tar", driver)}


def _names(objects: list[Object]) -> dict[str, str]:
    """The images that these objects name, by the last part of their repositories."""
    pods = [item["spec"]["template"]["spec"] for item in objects if item["kind"] in ("DaemonSet", "Deployment")]
    names = {container["image"] for pod in pods for container in pod["containers"]}
    return {name.rpartition("/")[2].partition(":")[0]: name for name in names}


def _driver_image(archive: Path, name: str) -> Path:
    """What the Dockerfile makes of this source."""
    print("cluster-test: building the driver's image", flush=True)
    (programs.CACHE / "images").mkdir(parents=True, exist_ok=True)
    buildah = Buildah(programs.CACHE / "images", kept=True)
    buildah.make_base()
    # Named, the layers of the first stage stay for the next time, when what has no name is thrown away.
    buildah.build("localhost/weightless:build-stage", stage="build")
    buildah.build("localhost/weightless:cluster-test")
    buildah("push", "--quiet", "localhost/weightless:cluster-test", f"oci-archive:{archive}:{name}")
    buildah("rmi", "--prune")
    return archive


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
