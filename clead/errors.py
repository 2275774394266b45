"""How a command ends: the errors a user can mend, the signals that stop it, and the exit codes they become."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

RESUMABLE = 75  # EX_TEMPFAIL: a batch system may start the same command again
STOPS = {signal.SIGINT: ("interrupted", 130)} | {
    number: (f"stopped by {number.name}", RESUMABLE) for number in (signal.SIGTERM, signal.SIGUSR1)
}
"""The signals that stop a command: what it says, and its exit code."""


class UserError(ValueError):
    """Bad input: one sentence that names the argument or file, what was expected and what was found.

    The commands print it without a traceback and exit with code 2.
    """


class NewerFile(UserError):
    """A file that a newer clead wrote: nothing is wrong with it, so it is left alone."""


def one_line(error: BaseException) -> str:
    """What a library says of an error, on one line of bounded length; its type where it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def place(error: BaseException) -> str:
    """`` at mine.py:12``: the innermost line of a user's own code that an error went through; empty where none was."""
    paths = sysconfig.get_paths()
    others = (str(Path(__file__).parent), paths["stdlib"], paths["purelib"], paths["platlib"], "<")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(others)]
    return f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""


class ArgumentParser(argparse.ArgumentParser):
    """One whose objections are a UserError, like all others, instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse with what is wrong with the arguments."""
        raise UserError(f"{message}; {self.prog} --help shows all options")


class Stopped(KeyboardInterrupt):
    """One of STOPS arrived: like Ctrl-C, no error of the program.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = signal.Signals(number)


def raise_stopped(number: int, _: FrameType | None = None) -> NoReturn:
    """Handler of a signal of STOPS."""
    raise Stopped(number)


def leave_on_interrupt() -> None:
    """Let Ctrl-C end the program with one line while it still imports; called before the imports that take seconds."""

    def leave(number: int, _: FrameType | None) -> NoReturn:
        # At once: what is being imported may catch whatever is raised in it, and there is nothing to tidy up yet.
        message, code = STOPS[signal.Signals(number)]
        os.write(2, f"{message}\n".encode())
        os._exit(code)

    for number in STOPS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, leave)


def run_command(main: Callable[[list[str]], None], *, hint: str = "") -> NoReturn:
    """Run a command: exit code 0, 2 with one sentence for what the user can mend, 130 for Ctrl-C, 141 if no one reads.

    SIGTERM and SIGUSR1, by which batch systems announce that time is up, end it with RESUMABLE.

    Args:
        main: called with the arguments.
        hint: what to do after a signal.
    """
    before = {number: signal.getsignal(number) for number in STOPS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as in a shell's background job
            signal.signal(number, raise_stopped)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal's encoding has every character
    try:
        main(sys.argv[1:])
    except UserError as error:
        _leave(f"error: {error}", 2)
    except BrokenPipeError:  # as in ``… | head``: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        _leave(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}", 2)
    except KeyboardInterrupt as error:
        message, code = STOPS[error.number if isinstance(error, Stopped) else signal.SIGINT]
        _leave(f"{message}; {hint}" if hint else message, code)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    raise SystemExit(0)


def _leave(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(code)
