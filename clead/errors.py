"""The error a user can mend."""


class UserError(ValueError):
    """Bad input: one sentence that names the argument or file, what was expected and what was found.

    The commands print it without a traceback and exit with code 2.
    """
