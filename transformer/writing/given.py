"""Lines that are given to a command. Imports no JAX, so that wrong flags are reported at once."""

from transformer.errors import UserError


def read_lines(given: bytes) -> list[str]:
    """The lines of a file, stripped of surrounding white space as training text is. UserErrors: it is not UTF-8, or has
    NUL characters, as UTF-16 has."""
    lines, pieces = [], given.split(b"\n")
    if not pieces[-1]:
        pieces.pop()  # nothing follows the last newline
    for number, line in enumerate(pieces, start=1):
        if b"\0" in line:
            raise UserError(f"line {number} of the input has a NUL character: convert it to UTF-8 if it is UTF-16")
        try:
            lines.append(line.decode("utf-8-sig" if number == 1 else "utf-8").strip())
        except UnicodeDecodeError as error:
            raise UserError(
                f"line {number} of the input is not UTF-8 (byte {error.start}): convert it first"
            ) from error
    return lines
