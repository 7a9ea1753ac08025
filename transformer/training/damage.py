"""What an error says about the files of a checkpoint."""

import errno
import os
import re

# Types of errors of damaged files, where the system itself reports none; and states that TensorStore's errors of such
# types begin with if the files are not to blame: https://github.com/abseil/abseil-cpp/blob/master/absl/status/status.h
UNREADABLE = (FileNotFoundError, ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError)
OF_SYSTEM = re.compile("(RESOURCE_EXHAUSTED|UNAVAILABLE|PERMISSION_DENIED|UNAUTHENTICATED|DEADLINE_EXCEEDED|ABORTED"
                       "|CANCELLED|INTERNAL|UNKNOWN|UNIMPLEMENTED):")  # fmt: skip


def cause(error: BaseException) -> tuple[str, bool]:
    """The cause in one readable line; and whether the files are damaged: they are missing or make no sense. All else
    (no memory, no permission, no file handles, a disk or a network that fails) says nothing about the files."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's form of system errors
    number = int(said[1]) if said else getattr(error, "errno", None)
    if number is not None:
        return os.strerror(number), number in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    return line, isinstance(error, UNREADABLE) and OF_SYSTEM.match(str(error)) is None
