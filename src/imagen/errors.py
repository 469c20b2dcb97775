"""The error that a user can cause: one clear sentence, shown without a traceback by the scripts."""


class UserError(ValueError):
    """Bad input: the message names the argument, the value and the remedy."""


class GoneError(UserError):
    """Another process of this command has ended or no longer answers: what went wrong is what that one said."""


def first_line(error: Exception) -> str:
    """What it says, of which libraries may say a page; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
