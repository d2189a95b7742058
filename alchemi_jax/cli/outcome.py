"""How a command ends."""

#: 0: all is well. 2: bad usage or unreadable input. 3: ran, but some systems did not converge or failed.
OK, USAGE, INCOMPLETE, INTERRUPTED = 0, 2, 3, 130


class UsageError(Exception):
    """What the user can put right, in one sentence."""
