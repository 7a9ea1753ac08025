"""A command, and the memory that it and its children take together."""

import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from transformer.errors import UserError

EVERY = 0.2  # seconds between two looks


class Watched(NamedTuple):
    """What a command wrote, and the most bytes that were resident at a time, pages of mapped files included."""

    output: str
    peak: int


def run(command: Sequence[str]) -> Watched:
    """Runs a command to its end. UserErrors: it fails; this system has no /proc."""
    if not Path("/proc/self/status").exists():
        raise UserError("memory of processes is read from /proc, which this system does not have: measure it on Linux")
    done, peak = threading.Event(), [0]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:

        def look() -> None:
            while not done.wait(EVERY):
                peak[0] = max(peak[0], resident(process.pid))

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            output, _ = process.communicate()
        finally:
            done.set()
            watcher.join()
    if process.returncode:
        raise UserError(f"{' '.join(command[:4])} ... ended with code {process.returncode}: {output[-2000:]}")
    return Watched(output, peak[0])


def resident(root: int) -> int:
    """Bytes of a process and of all that descend from it."""
    parents, sizes = {}, {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:  # it has ended
            continue
        process = int(lines["Pid"])
        parents[process] = int(lines["PPid"])
        sizes[process] = int(lines.get("VmRSS", "0 kB").split()[0]) * 1024  # none: it is a zombie

    def descends(process: int) -> bool:
        while process and process != root:
            process = parents.get(process, 0)
        return process == root

    return sum(size for process, size in sizes.items() if descends(process))
