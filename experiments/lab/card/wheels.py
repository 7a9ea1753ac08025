"""python3.12 -m experiments.lab.card.wheels [--download FOLDER]

Lists the packages that a machine without a network needs for `python -m experiments.run accelerator`: those of the
project, of its extras `gpu` and `kernels`, and PyTorch, at the versions of constraints.txt where it has them, as
`name==version  file`. They are for the kind of machine and the Python that run this: Linux on x86-64, and 3.12 for JAX
0.11 and later and for tokamax. With --download they are put into a folder as wheels, a few gigabytes; what has no wheel
is built. On the other machine, with the same Python:

    python3.12 -m venv .venv && .venv/bin/python -m pip install --no-index --no-deps FOLDER/*.whl
    .venv/bin/python -m experiments.run accelerator --workdir=runs/accelerator
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from transformer import command_line
from transformer.errors import UserError

ROOT = Path(__file__).parents[3]
EXTRAS = ("gpu", "kernels")
BESIDES = ("torch",)  # what is only compared with


class Package(NamedTuple):
    name: str
    version: str
    file: str


def requirements() -> list[str]:
    """What pyproject.toml asks for on this Python, with EXTRAS, and BESIDES."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(each for extra in EXTRAS for each in project["optional-dependencies"][extra])]
    return [*_here(asked), *BESIDES]


def constraints() -> list[str]:
    """The lines of constraints.txt for this Python."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return _here([line for line in lines if line and not line.startswith("#")])


def _here(lines: Sequence[str]) -> list[str]:
    """Those whose marker holds for this Python, without it."""
    parsed = [Requirement(line.partition(" #")[0]) for line in lines]
    kept = [one for one in parsed if one.marker is None or one.marker.evaluate()]
    for one in kept:
        one.marker = None
    return [str(one) for one in kept]


def resolved() -> list[Package]:
    """All that is needed, by name; nothing is fetched but what pip reads to decide. UserError: pip finds no versions
    that fit together, or no index; or the machine is of another kind."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        _pip("install", folder, "--dry-run", "--ignore-installed", "--target", folder, "--report", str(report))
        return parse(report.read_text(encoding="utf-8"))


def parse(report: str) -> list[Package]:
    """The packages of one of pip's reports, by name; where they are fetched from is left out."""
    found = [
        Package(one["metadata"]["name"], one["metadata"]["version"], one["download_info"]["url"].rpartition("/")[2])
        for one in json.loads(report)["install"]
    ]
    return sorted(found, key=lambda package: package.name.lower())


def _pip(verb: str, folder: str, *more: str) -> None:
    if (system := (platform.system(), platform.machine())) != ("Linux", "x86_64"):
        raise UserError(f"the packages are for Linux on x86-64, and this is {' on '.join(system)}: run it there")
    limits = Path(folder) / "constraints.txt"
    limits.write_text("\n".join(constraints()) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", verb, "--quiet", "--disable-pip-version-check", "-c", str(limits)]
    done = subprocess.run([*command, *more, *requirements()], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["it gave no reason"]
        raise UserError(f"pip finds no packages for Python {platform.python_version()}: {errors[-1]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the list, and fetches the files where a folder is named."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.lab.card.wheels", description=(__doc__ or "").split("\n\n")[1]
    )
    parser.add_argument("--download", metavar="FOLDER", help="put the files there: a few gigabytes")
    arguments = parser.parse_args(argv)
    try:
        if arguments.download:
            with tempfile.TemporaryDirectory() as folder:
                _pip("wheel", folder, "--wheel-dir", arguments.download)
            names = sorted(path.name for path in Path(arguments.download).glob("*.whl"))
            print(*names, f"{len(names)} wheels in {arguments.download!r}", sep="\n")
            return 0
        for package in resolved():
            print(f"{package.name}=={package.version}  {package.file}")
    except UserError as error:
        command_line.fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
