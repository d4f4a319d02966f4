"""Only in the machine of `python -m tests.selinux`, where SELinux enforces a policy with the domains of containers."""

from __future__ import annotations

import os

from tests.e2e.conftest import packed, small_model  # noqa: F401  (fixtures)

if "WEIGHTLESS_SELINUX" not in os.environ:
    # Not of `make test`: see CONTRIBUTING.md, SELinux.
    collect_ignore_glob = ["test_*.py"]
