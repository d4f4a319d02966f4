"""A process that is told to end ends, whichever of its threads the kernel gives the signal to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from weightless.signals import ENDING, signals_call

_PROGRAM = """
import signal, sys, threading, time
from weightless.signals import signals_call

number = int(sys.argv[1])
ended = threading.Event()

def signal_this_thread():
    time.sleep(0.3)  # by then the main thread waits
    signal.pthread_kill(threading.get_ident(), number)
    time.sleep(60)

with signals_call(ended.set):
    threading.Thread(target=signal_this_thread, daemon=True).start()
    ended.wait()
print("ended")
"""


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_whichever_thread_has_the_signal(number: signal.Signals) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(int(number))], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")


def test_everything_is_as_before_afterwards() -> None:
    before = [signal.getsignal(number) for number in ENDING]
    threads = threading.active_count()
    calls = []
    called = threading.Event()

    def call() -> None:
        calls.append(threading.current_thread().name)
        called.set()

    with signals_call(call):
        os.kill(os.getpid(), signal.SIGHUP)
        assert called.wait(10)
    assert calls == ["signals"]
    assert [signal.getsignal(number) for number in ENDING] == before
    assert threading.active_count() == threads
    assert signal.set_wakeup_fd(-1) == -1


def test_other_signals_call_nothing() -> None:
    calls: list[None] = []
    before = signal.signal(signal.SIGUSR1, lambda _number, _frame: None)
    try:
        with signals_call(lambda: calls.append(None)):
            os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert calls == []
