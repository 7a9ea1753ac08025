"""What figures came from."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "tokenizers", "sacrebleu", "torch", "transformers")


def provenance() -> dict[str, Any]:
    """What the figures came from: commit, versions, device."""
    import jax

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    device = jax.devices()[0]
    return {
        "commit": commit(),
        "versions": versions,
        "device": f"{platform.machine()} processor" if device.platform == "cpu" else device.device_kind,
        "cores": cores,
    }


def commit() -> str | None:
    """The git commit of this code, with "+" where files differ from it; None outside a repository."""
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head[:12] + ("+" if changed.stdout.strip() else "")
