"""The error for mistakes of the user."""


class UserError(Exception):
    """A mistake of the user: one sentence that says what to do. The commands print it without a traceback."""
