"""The one error that is for people."""


class UserError(Exception):
    """A mistake of the user's: one sentence that says what to do. The verbs print it without a traceback."""
