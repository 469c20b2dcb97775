"""The error that a user can cause: one clear sentence, shown without a traceback by the scripts."""


class UserError(ValueError):
    """Bad input: the message names the argument, the value and the remedy."""
