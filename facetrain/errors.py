"""What goes wrong through no fault of the code: a user's mistake, or a run that cannot go on."""


class InputError(ValueError):
    """Something the user can mend: a config value, a path, a damaged file.

    The message is one line that says what is wrong, where, what was expected and what to do. The command line prints it
    without a traceback and exits with ``exit_code``; library callers can catch it as a ``ValueError``.
    """

    exit_code = 2


class RunError(RuntimeError):
    """A run that cannot go on (a loss that is not finite, say) through no malformed input.

    The message is one line: what, when, and what can be gone on from. The command line prints it and exits with
    ``exit_code``.
    """

    exit_code = 1


class LostRankError(RunError):
    """A rank died, hangs or cannot be reached. Started again, the run may well go on."""

    exit_code = 3
