"""Errors a user can mend. The command line prints their message alone and ends with status 2.

Each message says what it got, what it expected and what to do. Our own invariants use ``assert``.
"""


class UserError(ValueError):
    """Something the user gave (a setting, a file, a tensor) cannot be used.

    Attributes:
        one_rank: met by one process of several, so that one has to say it; other errors all of them meet.
    """

    one_rank = False


class DataError(UserError):
    """A file of a data set is missing, unreadable or does not fit its partner."""


class WeightsError(UserError):
    """A weights file does not fit the network it is meant for."""


class NonFiniteError(UserError):
    """A term of the loss became NaN or infinite; raised before the optimizer step."""


def first_line(error: Exception) -> str:
    """What another library's error says, in one line; the error's kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
