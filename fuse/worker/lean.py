"""Imported before anything else by a worker: keeps rich out of the process.

structlog imports rich for colourful tracebacks when it can, which costs a third of a worker's start and 4 MB; there is one
worker a mount, and its start is the length of a stall after a crash. structlog takes an ImportError here as "not installed".
"""

import sys

sys.modules.setdefault("rich", None)  # type: ignore[arg-type] # None is how the import system says "not there"
