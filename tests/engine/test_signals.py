"""Signals wait for the end of a step; a second one does not."""

import os
import signal
import threading

import pytest

from clead.engine.signals import held_back
from clead.errors import Stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_the_first_signal_waits_and_the_second_does_not(number):
    before = signal.getsignal(number)
    with held_back() as held:
        os.kill(os.getpid(), number)
        assert held == [number]
        with pytest.raises(Stopped) as stopped:
            os.kill(os.getpid(), number)
        assert stopped.value.number == number
    assert signal.getsignal(number) is before


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with held_back() as held:
            os.kill(os.getpid(), signal.SIGTERM)
        assert held == []
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_cannot_be_told():
    seen = []

    def work():
        with held_back() as held:
            seen.append(held)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [[]]
