"""Runs the command."""

from clead.errors import leave_on_interrupt, run_command

if __name__ == "__main__":
    leave_on_interrupt()

from clead.evaluate.command import main

if __name__ == "__main__":
    run_command(main, hint="the rows measured so far are kept")
