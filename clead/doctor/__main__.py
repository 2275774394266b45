"""Runs the command. Nothing is imported here that a broken installation may lack."""

from clead.errors import leave_on_interrupt, run_command

if __name__ == "__main__":
    leave_on_interrupt()

from clead.doctor.command import main

if __name__ == "__main__":
    run_command(main)
