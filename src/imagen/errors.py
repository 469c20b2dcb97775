"""The error that a user can cause: one clear sentence, shown without a traceback by the scripts."""


class UserError(ValueError):
    """Bad input: the message names the argument, the value and the remedy."""


class HeldError(UserError):
    """Another process is at it: whoever can wait for it, or do something else meanwhile, need not fail."""
