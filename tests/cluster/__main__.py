"""`make cluster-test`: sees a real kubelet use the driver.

Without KUBECONFIG: builds the programs of a cluster and the images, which needs the network, and runs the tests in a machine of
their own, which has none. With it: runs the tests against that cluster. Arguments go to pytest.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.cluster import images, machine, programs, settings
from tests.cluster.installation import images as images_of
from tests.cluster.installation import rendered
from tests.cluster.node import PAUSE
from tests.deploy.image import BASE, Buildah


def main(arguments: list[str]) -> int:
    pytest = [sys.executable, "-m", "pytest", "tests/cluster", "-p", "no:cacheprovider", *arguments]
    if "KUBECONFIG" in os.environ:
        settings.Foreign.from_environment()  # complains at once of what is missing
        return subprocess.run(pytest, env={**os.environ, settings.MODE: settings.FOREIGN}, check=False).returncode
    if os.geteuid() != 0:
        raise SystemExit("a machine of its own needs root; or name a cluster in KUBECONFIG")
    with tempfile.TemporaryDirectory(
        prefix="weightless-cluster-images-", dir=os.environ.get("TMPDIR", "/var/tmp")
    ) as directory:
        archives = _images(Path(directory), programs.build())
        logs = Path(tempfile.mkdtemp(prefix="weightless-cluster-logs-"))
        os.environ |= {settings.MODE: settings.OWN, settings.IMAGES: os.pathsep.join(map(str, archives))}
        code = machine.run(pytest, logs=logs)
    if code == 0:
        subprocess.run(["rm", "-r", str(logs)], check=True)
    else:
        print(f"cluster-test: what each program wrote is in {logs}", file=sys.stderr)
    return code


def _images(directory: Path, built: programs.Programs) -> list[Path]:
    """All that the manifests ask for, and what nobody asks for by name."""
    wanted = images_of(rendered(built.kubernetes / "kubectl"))
    busybox = Path("/bin/busybox")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    small = {
        PAUSE: ({"bin/busybox": busybox}, ["/bin/busybox", "sleep", "2147483647"]),
        settings.READER: ({"bin/busybox": busybox}, ["/bin/sh"]),
    }
    for image, file in (
        ("csi-node-driver-registrar", "registrar"),
        ("livenessprobe", "livenessprobe"),
        ("csi-provisioner", "csi-provisioner"),
    ):
        small[wanted[image]] = ({f"bin/{file}": built.sidecars / file}, [f"/bin/{file}"])
    archives = [
        images.write_image(
            directory / f"{number}.tar",
            name=name,
            files=files,
            links={f"bin/{applet}": "busybox" for applet in applets if applet != "busybox"}
            if "bin/busybox" in files
            else {},
            entrypoint=entrypoint,
        )
        for number, (name, (files, entrypoint)) in enumerate(small.items())
    ]
    return [*archives, _driver_image(directory / "driver.tar", wanted["weightless"])]


def _driver_image(archive: Path, name: str) -> Path:
    """What the Dockerfile makes of this source."""
    print("cluster-test: building the driver's image", flush=True)
    (programs.CACHE / "images").mkdir(parents=True, exist_ok=True)
    buildah = Buildah(programs.CACHE / "images", kept=True)
    if not buildah("images", "--quiet", f"--filter=reference={BASE}"):
        buildah.make_base()
    # Named, the layers of the first stage stay for the next time, when what has no name is thrown away.
    buildah.build("localhost/weightless:build-stage", stage="build")
    buildah.build("localhost/weightless:cluster-test")
    buildah("push", "--quiet", "localhost/weightless:cluster-test", f"oci-archive:{archive}:{name}")
    buildah("rmi", "--prune")
    return archive


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
