"""What every test shares: eight simulated devices, one compilation cache, and signatures that are checked."""

import os
from pathlib import Path

# JAX reads these when it is first imported, and so do the commands that tests start.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
_CACHE = Path(__file__).parent.parent / ".cache"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("MPLBACKEND", "Agg")

from collections.abc import Iterator

import jax
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# The shapes in signatures are checked where arrays are handled. What reads people's input (config, data, the verbs)
# is left as it runs for them: there a wrong type must end in the project's own sentence.
install_import_hook(
    ["transformer.model", "transformer.training", "transformer.decoding", "transformer.analysis"], "beartype.beartype"
)

# The first example of a shape compiles for seconds, so a deadline would only measure the compiler. The examples are
# the same on every run: a failure can be run again.
settings.register_profile("transformer", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("transformer")

# What these test is held to other implementations up to rounding, or to programs of its own kind: hundreds of tiny
# programs that are run once, and whose machine code takes longer to optimise than to run.
_NOT_OPTIMISED = {"model", "decoding", "analysis", "experiments", "lab", "predicting"}
_NOT_OPTIMISED |= {f"test_{name}.py" for name in ("bfloat16", "tasks", "heads", "verbs", "plugins", "notebooks")}
_NOT_OPTIMISED |= {f"test_{name}.py" for name in ("beginning", "predict", "your_data")}
_NOT_OPTIMISED |= {f"test_{name}.py" for name in ("scanned", "sequence")}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that need a compiler of accelerators are run where `-m` asks for them: `make accelerators`."""
    if "accelerators" not in config.option.markexpr:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("accelerators")])
        items[:] = [item for item in items if not item.get_closest_marker("accelerators")]


@pytest.fixture(scope="module", autouse=True)
def _programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each file of tests begins without compiled programs: thousands of them took 5 GB in one process, and each takes
    some of the mappings of memory that the system allows a process (65,530)."""
    quick = not _NOT_OPTIMISED.isdisjoint({request.path.parent.name, request.path.name})
    jax.config.update("jax_disable_most_optimizations", quick)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", str(int(quick)))  # of the processes that they start
        yield
    jax.clear_caches()
