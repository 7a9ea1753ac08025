"""Many entries of the cache, made side by side: by several processes of this machine, and of others that share the
cache folder.

Each entry is made by whoever takes its lock first, and is there completely or not at all. So preparation that was
killed goes on with what is missing, and several machines divide the entries without knowing of each other.
"""

import contextlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from transformer.data.caching import held, locked, usable, writing
from transformer.errors import UserError

# Fills the temporary folder of entry `number`, and says from time to time how many units more are done. It can be
# pickled where entries are made by other processes.
Make = Callable[[int, Path, Callable[[int], Any]], None]

PARALLEL_ABOVE = 2**24  # units of what is missing, bytes or tokens; a process takes a second to begin
LONGEST = 3000  # characters of an error: a line of this length is written to a pipe at once
_SERVE = "from transformer.data.preparing import serve; serve()"
_ALONE = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def prepare(folder: Path, make: Make, sizes: Sequence[int], said: str, unit: str, spread: bool = True) -> list[Path]:
    """The entries 0, 1, ... of a folder, each a folder that `make` has filled. `sizes`: how many units each has, for
    the bar, which `said` names. Without `spread`, this process makes them one after another. What another machine is
    making is waited for. UserError: one of `make`, or a process was killed."""
    paths = [usable(folder / str(number)) for number in range(len(sizes))]
    with tqdm(total=sum(sizes), desc=said, unit=unit, unit_scale=True, disable=None, leave=False) as bar:
        while missing := [number for number, path in enumerate(paths) if not path.exists()]:
            left = sum(sizes[number] for number in missing)
            bar.n = bar.total - left
            bar.refresh()
            workers = min(cores(), len(missing)) if spread and left > PARALLEL_ABOVE else 1
            if workers > 1:
                _side_by_side(workers, paths, make, bar, said)
            else:
                _each(paths, make, bar.update)
            rest = [number for number in missing if not paths[number].exists()]
            if rest:  # others are making them, and end or are killed
                with locked(paths[rest[0]]):
                    pass
    return paths


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _each(paths: Sequence[Path], make: Make, told: Callable[[int], Any]) -> None:
    """Makes the entries that are missing and that no other process is making."""
    for number, path in enumerate(paths):
        if path.exists():
            continue
        with held(path) as free:
            if free and not path.exists():
                with writing(path) as temporary:
                    temporary.mkdir()
                    make(number, temporary, told)


def _side_by_side(workers: int, paths: Sequence[Path], make: Make, bar: "tqdm[Any]", said: str) -> None:
    """`_each` in several processes. They are no copies of this one (it may hold threads and devices), import only what
    `make` needs, and end with this one, since nobody reads then what they tell."""
    environment = os.environ | _ALONE | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    error: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        job = stack.enter_context(tempfile.NamedTemporaryFile())
        pickle.dump((list(paths), make), job)
        job.flush()
        read, write = os.pipe()
        told = stack.enter_context(open(read))
        begun = list[subprocess.Popen[bytes]]()
        stack.callback(_end, begun)
        try:
            for _ in range(workers):
                command = [sys.executable, "-c", _SERVE, job.name, str(write)]
                begun.append(subprocess.Popen(command, env=environment, pass_fds=[write], start_new_session=True))
        finally:
            os.close(write)
        for line in told:
            message = json.loads(line)
            bar.update(message.get("done", 0))
            if "error" in message:
                error = error or message
                _end(begun)
        ended = [process.wait() for process in begun]
    if error:
        raise (UserError if error["user"] else RuntimeError)(error["error"])
    if any(ended):
        raise UserError(
            f"{said}: a process ended with code {next(filter(None, ended))} (-9: it was killed, mostly for want of "
            "memory); run the same command again, and it goes on with what is missing."
        )


def _end(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    for process in processes:
        process.kill()
        process.wait()


def serve() -> None:
    """What each process of `_side_by_side` runs."""
    with open(sys.argv[1], "rb") as job:
        paths, make = pickle.load(job)
    with open(int(sys.argv[2]), "w", buffering=1) as told:

        def tell(**message: Any) -> None:
            told.write(json.dumps(message) + "\n")

        try:
            _each(paths, make, lambda done: tell(done=done))
        except BrokenPipeError:  # the process that asked has ended
            os._exit(1)
        except Exception as error:
            known = isinstance(error, UserError)
            said = str(error) if known else f"{type(error).__name__}: {error}"
            tell(error=said[:LONGEST], user=known)
