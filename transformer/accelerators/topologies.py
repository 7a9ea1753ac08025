"""Groups of accelerators that compilers know without having one: TOPOLOGIES, and `h100:slices x hosts x devices`."""

import contextlib
import difflib
import importlib.util
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

from transformer.accelerators.sheets import SHEETS, Sheet
from transformer.errors import UserError

# Chips of a slice, as their names are written: those of the vendor's lists, and one chip.
_FLAT = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16".split()
_CUBES = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16".split()
TOPOLOGIES = {"v4": _CUBES, "v5e": _FLAT, "v5p": ["1x1x1", *_CUBES], "v6e": _FLAT}
# What XLA needs to know of a GPU that it compiles for.
_GPU = """gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
shared_memory_per_core: {shared} threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: {units}
block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth}
l2_cache_size: {cache} clock_rate_ghz: {clock} device_memory_size: {memory} shared_memory_per_block_optin: {block}
cuda_compute_capability {{ major: {major} minor: 0 }} registers_per_core_limit: 65536
registers_per_block_limit: 65536 }} platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}" """
_HOPPER = {"shared": 233472, "cores": 132, "units": 128, "cache": 52428800, "clock": 1.98, "block": 232448, "major": 9}
_AMPERE = {"shared": 167936, "cores": 108, "units": 64, "cache": 41943040, "clock": 1.41, "block": 166912, "major": 8}
_GPUS: dict[str, dict[str, Any]] = {
    "a100": _AMPERE | {"memory": 85097971712, "name": "NVIDIA A100-SXM4-80GB"},
    "h100": _HOPPER | {"memory": 84942979072, "name": "NVIDIA H100 80GB HBM3"},
    "h200": _HOPPER | {"memory": 150754820096, "name": "NVIDIA H200"},
}


class Topology(NamedTuple):
    name: str
    chip: str  # a row of SHEETS
    devices: tuple[Any, ...]  # JAX's, for compiling only

    @property
    def sheet(self) -> Sheet:
        return SHEETS[self.chip]


def prepare() -> None:
    """Sets what the compilers read from the environment. Before JAX starts: this process computes on its CPU, and does
    not look for accelerators."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu does not ask a cloud where it is
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # two processes may compile at a time
    import jax

    jax.config.update("jax_platforms", "cpu")
    with quiet():  # plugins of accelerators complain that there are none
        jax.devices()


def parse(name: str) -> tuple[str, tuple[int, ...]]:
    """(row of SHEETS, sizes) of a name such as v5e:4x4. UserError: there is no such group; the nearest is named."""
    chip, _, sizes = name.partition(":")
    if (chip in _GPUS and re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-8]", sizes)) or sizes in TOPOLOGIES.get(chip, ()):
        return chip, tuple(int(size) for size in sizes.split("x"))
    if chip in _GPUS:
        raise UserError(
            f"--topology={name!r} is not known: write {chip}:slices x hosts x devices of a host, of which there are at "
            f"most 8, such as {chip}:1x1x8"
        )
    chips = ", ".join(sorted(SHEETS))
    near = _nearest(name)
    if near is None:
        raise UserError(
            f"--topology={name!r} is not known: write a slice of TPUs such as v5e:4x4, or GPUs such as h100:1x1x8, "
            f"which are slices x hosts x devices of a host; there are {chips}"
        )
    chip, _, _ = near.partition(":")
    sizes = ", ".join(TOPOLOGIES.get(chip, ["slices x hosts x devices"]))
    raise UserError(
        f"--topology={name!r} is not known: did you mean {near!r}? There are {chips}, and of {chip} {sizes}"
    )


def _nearest(name: str) -> str | None:
    """The known group nearest to a name: of a TPU's slice that has as many chips ("v5e-16"), or else by its letters."""
    for chip, several in TOPOLOGIES.items():
        numbers = re.findall(r"\d+", name.removeprefix(chip)) if name.startswith(chip) else []
        for size in several:
            if numbers and math.prod(map(int, numbers)) == math.prod(map(int, size.split("x"))):
                return f"{chip}:{size}"
    known = [f"{chip}:{size}" for chip, several in TOPOLOGIES.items() for size in several]
    known += [f"{chip}:1x1x8" for chip in _GPUS]
    return next(iter(difflib.get_close_matches(name, known, 1, 0.5)), None)


def load(name: str) -> Topology:
    """The devices of a group, from its compiler. UserError: as in `parse`, or the compiler is not installed."""
    chip, sizes = parse(name)
    extra, package = ("gpu", "jax_cuda13_plugin") if chip in _GPUS else ("tpu", "libtpu")
    missing = f"the compiler for {chip} is not installed: pip install '.[{extra}]'"
    missing += " with Python 3.12 or newer" if extra == "gpu" and sys.version_info < (3, 12) else ""
    if importlib.util.find_spec(package) is None:
        raise UserError(missing)
    prepare()
    from jax.experimental import topologies

    try:
        with quiet():
            if chip in _GPUS:
                target = _GPU.format(bandwidth=int(SHEETS[chip].bandwidth), **_GPUS[chip])
                found = topologies.get_topology_desc(
                    platform="cuda", topology_name=chip, topology=name.partition(":")[2], target_config=target
                )
            else:
                told: dict[str, Any] = {"chip_config_name": "megacore"} if chip == "v4" else {}
                if math.prod(sizes) == 1:
                    told["chips_per_host_bounds"] = (1, 1, 1)
                found = topologies.get_topology_desc(platform="tpu", topology_name=name, **told)
    except NotImplementedError as error:
        raise UserError(missing) from error
    return Topology(name, chip, tuple(found.devices))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what compilers write to the process's standard error from the user: their errors are exceptions."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
