"""The error a user can mend, and the exit code it becomes."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(ValueError):
    """Bad input: one sentence that names the argument or file, what was expected and what was found.

    The commands print it without a traceback and exit with code 2.
    """


def leave_on_interrupt() -> None:
    """Let Ctrl-C end the program with one line while it still imports; called before the imports that take seconds."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: _leave("interrupted", 130))


def run_command(main: Callable[[list[str]], None], interrupted: str = "interrupted") -> NoReturn:
    """Run a command: exit code 0, 2 with one sentence for what the user can mend, 130 for Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in a shell's background job
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal's encoding has every character
    try:
        main(sys.argv[1:])
    except UserError as error:
        _leave(f"error: {error}", 2)
    except OSError as error:
        _leave(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}", 2)
    except KeyboardInterrupt:
        _leave(interrupted, 130)
    raise SystemExit(0)


def _leave(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(code)
