"""The signals that end a process, told to a thread of their own.

Python runs a signal's handler on the main thread, between two bytecodes. The kernel may give the signal to any other thread,
and then nothing wakes a main thread that waits for a lock: such a process ends at its second SIGTERM. What does happen at once,
whichever thread was chosen, is that the number is written to the wake-up descriptor (Python's `signal.set_wakeup_fd`).
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def signals_call(call: Callable[[], None]) -> Iterator[None]:
    """SIGTERM, SIGINT and SIGHUP call `call`, on a thread of its own, once for each that comes. Enter on the main thread.

    The thread has ended when the context is left.
    """
    heard, told = socket.socketpair()
    told.setblocking(False)  # `set_wakeup_fd` asks for it

    def listen() -> None:
        while numbers := heard.recv(16):
            for number in numbers:
                if number in ENDING:
                    call()

    listener = threading.Thread(target=listen, name="signals", daemon=True)
    with heard, told:
        listener.start()
        fd_before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, lambda _number, _frame: None) for number in ENDING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(fd_before)
            told.shutdown(socket.SHUT_WR)
            listener.join()
