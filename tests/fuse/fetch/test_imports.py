"""What the fetcher imports, it imports before it gives up its privileges: Python may lie where its new user cannot look."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.support.registry import FaultyRegistry

_PROGRAM = """
import json, sys
import fuse.fetch.__main__
from fuse import logs
from fuse.artifact.digest import Digest
from fuse.artifact.reference import Reference
from fuse.errors import WeightlessError
from fuse.registry.dial import Dialer
from fuse.registry.addresses import ANY_ADDRESS
from fuse.registry.repository import Repository
from fuse.registry.transport import Transport
from tests.support.fetcher import access_to
import structlog

tried = []

class Closed:
    @staticmethod
    def find_spec(name, path=None, target=None):
        tried.append(name)
        raise PermissionError(name)

sys.meta_path.insert(0, Closed)
logs.configure("fetcher")

def attempt(step):
    try:
        step()
    except WeightlessError:
        pass
    except Exception:
        structlog.get_logger().exception("step_failed")

for host in ("nowhere.invalid", "xn--bcher-kva.invalid", "b\\u00fccher.invalid", "a" * 70 + ".invalid", "127.0.0.1"):
    attempt(lambda: Dialer().addresses(host, 1, ANY_ADDRESS))
for host in sys.argv[2:]:
    repository = Repository(Reference.parse(host + "/m:v1"), access_to("http://" + host), Transport(environment={}))
    attempt(lambda: repository.manifest("v1"))
digest = Digest.parse(sys.argv[1])
for scheme in ("http", "https"):
    access = access_to(f"{scheme}://{sys.argv[2]}")
    repository = Repository(Reference.parse(sys.argv[2] + "/m:v1"), access, Transport(environment={}))
    def read():
        with repository.open_blob(digest, 1000, 0, 1000, lane=1) as stream:
            while stream.readinto(memoryview(bytearray(1000))):
                pass
    for _ in range(8 if scheme == "http" else 1):
        attempt(read)
attempt(lambda: 1 / 0)
print(json.dumps(tried))
"""


def test_nothing_is_imported_once_it_may_be_out_of_reach() -> None:
    """Names of all kinds, answers and failures of all kinds, TLS, tracebacks in the log."""
    with FaultyRegistry() as registry:
        digest = registry.add_blob(bytes(1000))
        for words in ("503", "429", "cut@400", "corrupt", "wrong-range", "no-range", "redirect"):
            registry.script("blob", words)
        ran = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(digest), registry.host, "xn--bcher-kva.invalid"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == []
