"""As much of SLURM as we and submitit ask for: `python fake_slurm.py sbatch|srun|sacct ...`, with its state in
$FAKE_SLURM.

Each element of an array runs as a process of this machine. While a file `hold` is there, all stay pending.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

STATE = Path(os.environ["FAKE_SLURM"])


def sbatch(script: str) -> None:
    number = 1000 + len(list(STATE.glob("*.sh")))
    text = Path(script).read_text()
    (STATE / f"{number}.sh").write_text(text)
    array = re.search(r"^#SBATCH --array=0-(\d+)%(\d+)", text, re.M)
    last, parallel = map(int, array.groups()) if array else (0, 1)
    names = [f"{number}_{i}" if array else f"{number}" for i in range(last + 1)]
    for name in names:
        (STATE / f"{name}.state").write_text("PENDING")
    subprocess.Popen(
        [sys.executable, __file__, "serve", str(number), str(parallel), *names], start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    print(f"Submitted batch job {number}")


def serve(number: str, parallel: str, *names: str) -> None:
    while (STATE / "hold").exists():
        time.sleep(0.1)
    waiting, running = list(names), dict[str, subprocess.Popen]()
    while waiting or running:
        while waiting and len(running) < int(parallel):
            name = waiting.pop(0)
            own = {"SLURM_JOB_ID": name, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_PROCID": "0",
                   "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}  # fmt: skip
            if "_" in name:
                own |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": name.split("_")[1]}
            (STATE / f"{name}.state").write_text("RUNNING")
            running[name] = subprocess.Popen(["bash", str(STATE / f"{number}.sh")], env=os.environ | own)
        for name, process in list(running.items()):
            if process.poll() is not None:
                del running[name]
                state = STATE / f"{name}.state"
                if state.read_text() == "REQUEUED":
                    waiting.append(name)
                elif state.read_text() == "COMPLETING":  # after scancel
                    state.write_text("CANCELLED by 0")
                else:
                    state.write_text("COMPLETED" if process.returncode == 0 else "OUT_OF_MEMORY")
        time.sleep(0.05)


def srun(*arguments: str) -> None:
    rest = list(arguments)
    while rest[0].startswith("-"):
        rest.pop(0) if "=" in rest[0] or rest[0] == "--unbuffered" else rest.__delitem__(slice(0, 2))
    (STATE / f"{os.environ['SLURM_JOB_ID']}.pid").write_text(str(os.getpid()))
    os.execvp(rest[0], rest)


def sacct(*arguments: str) -> None:
    print("JobID|State|NodeList")
    for path in sorted(STATE.glob("*.state")):
        if path.stem.split("_")[0] in arguments:
            print(f"{path.stem}|{path.read_text()}|here")


def squeue(*arguments: str) -> None:
    state = (STATE / f"{arguments[arguments.index('-j') + 1]}.state").read_text()
    print(state if state in ("PENDING", "RUNNING") else "COMPLETING")


def scontrol(verb: str, name: str) -> None:
    assert verb == "requeue"
    (STATE / f"{name}.state").write_text("REQUEUED")


def scancel(name: str, *options: str) -> None:
    """Ends a job, or sends it a signal: `scancel 1000_1 --signal USR2`."""
    if not options:
        (STATE / f"{name}.state").write_text("COMPLETING")
    number = signal.Signals[f"SIG{options[1].removeprefix('SIG')}"] if options else signal.SIGTERM
    os.kill(int((STATE / f"{name}.pid").read_text()), number)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
