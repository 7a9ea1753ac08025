"""The error for mistakes of the user, and the end of a run that was asked to stop."""


class UserError(Exception):
    """A mistake of the user: one sentence that says what to do. The commands print it without a traceback."""


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, and all that it computed is saved, but steps are left. Like Ctrl-C, it passes through
    what catches errors."""
