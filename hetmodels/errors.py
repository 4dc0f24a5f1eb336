"""The two kinds of failure that a user can cure, and how their messages are made."""

import difflib
from collections.abc import Iterable


class DataError(ValueError):
    """The data or the run cannot be used as they are (exit status 1)."""


class UsageError(ValueError):
    """The call is wrong: unknown names, wrong types, things that do not fit together (exit status 2)."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean …?' where something close exists, else the list of what is known.

    >>> did_you_mean("clases", ["classes", "dims"])
    " Did you mean 'classes'?"
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Known: {', '.join(names)}." if names else ""
