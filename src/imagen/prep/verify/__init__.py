"""Reopen everything that the other scripts wrote, and say what is not as they left it."""

from imagen.prep.verify.command import verify

__all__ = ["verify"]
