"""proto/csi.proto and what is generated from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from csi.pb import csi_pb2 as pb

ROOT = Path(__file__).parents[2]


def test_generated_code_is_up_to_date() -> None:
    """Generating anew changes nothing; `make check` asks the same."""
    answer = subprocess.run(
        [ROOT / "proto" / "check.sh"],
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_every_secrets_field_is_marked() -> None:
    """All 19 requests with secrets carry the option that keeps them out of logs (CSI 1.12.0)."""
    messages = pb.DESCRIPTOR.message_types_by_name.values()
    marked = [
        f"{message.name}.{field.name}"
        for message in messages
        for field in message.fields
        if field.GetOptions().Extensions[pb.csi_secret]
    ]
    assert len(marked) == 19
    assert all(name.endswith("Request.secrets") for name in marked)


def test_numbers_on_the_wire_are_the_specification() -> None:
    """A few fields by number, as bytes: what kubelet sends is what we read."""
    request = pb.NodePublishVolumeRequest(volume_id="v", target_path="/t", readonly=True)
    assert request.SerializeToString() == b"\n\x01v\x22\x02/t0\x01"
    assert pb.NodeServiceCapability.RPC.VOLUME_CONDITION == 4
    assert pb.VolumeCapability.AccessMode.MULTI_NODE_READER_ONLY == 3
    assert pb.DESCRIPTOR.package == "csi.v1"
    assert pb.DESCRIPTOR.services_by_name["Node"].full_name == "csi.v1.Node"
