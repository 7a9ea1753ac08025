"""What all commands share: flags, one-sentence errors, and the compilation cache."""

import contextlib
import ctypes
import dataclasses
import os
import re
import sys
from collections.abc import Callable
from logging import Formatter
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from absl import app, flags, logging

from transformer.config import Config, MeshConfig, check_key, from_config_dict, is_texts, load_file
from transformer.data.caching import DEFAULT, writable
from transformer.errors import Stopped, UserError
from transformer.paths import expanded, for_checkpoints, local
from transformer.plugins import load_plugins

if TYPE_CHECKING:
    from transformer.runs import Run

FLAGS = flags.FLAGS


def define_config() -> None:
    """The --config flag, and --config.key=value for every key."""
    from ml_collections import config_flags

    said = "A file with get_config(), such as configs/quantities.py."
    # New attributes are those of plugins: `_parse` refuses all others.
    config_flags.DEFINE_config_file("config", None, said, lock_config=False, accept_new_attributes=True)


def config_from_flags() -> Config:
    """The config of the flags, whose plugins are imported. UserError: no file was named, or the config is invalid."""
    if FLAGS.config is None:
        raise UserError("--config is missing: name a config file, such as --config=configs/quantities.py")
    config = from_config_dict(FLAGS.config)
    load_plugins(config.plugins)
    return config


def parse_mesh(given: str) -> MeshConfig:
    """The mesh of a flag such as --mesh=data=2,fsdp=4; axes that are not named have one device. UserError: it is
    none."""
    axes = [field.name for field in dataclasses.fields(MeshConfig) if field.name not in ("accumulate", "dcn")]
    sizes = dict[str, int]()
    for part in given.split(","):
        axis, _, size = part.partition("=")
        if axis not in axes or axis in sizes or not size.isdecimal() or int(size) < 1:
            named = f"{', '.join(axes[:-1])} or {axes[-1]}"
            raise UserError(f"--mesh={given!r} has {part!r}: write {named} once, and how many: data=2,fsdp=4")
        sizes[axis] = int(size)
    return MeshConfig(**dict.fromkeys(axes, 1) | sizes)


def workdir_from_flags() -> Path:
    """The folder of --workdir. UserError: it is missing."""
    if not FLAGS.workdir:
        raise UserError("--workdir is missing: name the folder of the run, such as --workdir=runs/first")
    return for_checkpoints(FLAGS.workdir, "--workdir")


def define_run() -> None:
    """The flags that name a trained run, and the fields of `writing.manner.Manner` that all its users have."""
    flags.DEFINE_string("workdir", None, "Folder of the trained run, or several with commas between them.")
    flags.DEFINE_integer("average", 1, "Average the parameters of the newest N checkpoints.", lower_bound=1)
    flags.DEFINE_bool("best", False, "The checkpoint of the best validation loss, in place of the newest.")
    flags.DEFINE_string("mesh", None, "Devices that split rows and parameters, such as data=2,fsdp=4 or tensor=2.")
    flags.DEFINE_integer("beam", 0, "Hypotheses of a beam search; 0 = greedy.")
    flags.DEFINE_float("alpha", 0.6, "Of the length penalty ((5 + length) / 6) ** alpha of beam search (GNMT).")


def run_from_flags() -> "Run":
    """The run of --workdir, or the ensemble of several. UserError: see `runs.load_run`."""
    if not FLAGS.workdir:
        raise UserError("--workdir is missing: name the folder of a trained run")
    if FLAGS.best and FLAGS.average > 1:
        raise UserError(f"--best names one checkpoint and --average={FLAGS.average} several: leave one of them out")
    mesh = mesh_from_flags()
    from transformer.runs import load_ensemble

    whole = local(FLAGS.workdir, "--workdir")
    several = [] if whole.is_dir() else [name for name in FLAGS.workdir.split(",") if name]
    return load_ensemble(several or [whole], FLAGS.average, FLAGS.best, mesh, FLAGS.plugins)


def mesh_from_flags() -> MeshConfig | None:
    """The mesh of --mesh; None where it is not given. UserError: it is none."""
    return None if FLAGS.mesh is None else parse_mesh(FLAGS.mesh)


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that later starts are fast; JAX_COMPILATION_CACHE_DIR sets the folder."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        with contextlib.suppress(UserError):  # no folder can be written: nothing is kept
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(writable(Path(f"{DEFAULT}/xla")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def keep_freed_memory() -> None:
    """Makes glibc keep the memory that a step frees for the next step, instead of returning it to the system.

    On a CPU, XLA frees its work space after every step, and the system clears every page that it hands out again:
    gradients of `quantities` took 52 ms a step, and 36 ms with this; a step of `multi30k` 0.52 s and 0.43 s. There is
    one arena, because those of other threads are split into heaps that cannot hold a large array. Other systems and
    accelerators are not affected.
    """
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # of <malloc.h>
    with contextlib.suppress(OSError, AttributeError):  # a C library without mallopt
        libc = ctypes.CDLL(None)
        libc.mallopt(arena_max, 1)
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def fail(error: Exception | str) -> NoReturn:
    """Prints one sentence and exits with status 2, as for a wrong command line."""
    print(f"error: {str(error).strip()}", file=sys.stderr)
    sys.exit(2)


def _parse(argv: list[str]) -> list[str]:
    """absl's parser, with errors in the config reported in one sentence each."""
    try:
        for i, argument in enumerate(argv):
            if argument in ("-config", "--config"):
                argv[i : i + 2] = [f"--config={''.join(argv[i + 1 : i + 2])}"]
            if match := re.fullmatch(r"--?config=(.*)", argv[i], re.DOTALL):
                path = expanded(match[1], "--config")
                load_file(path)
                if ":" in path:
                    raise UserError(f"--config={match[1]!r} has a colon, at which ml_collections cuts it: rename it")
                argv[i] = f"--config={path}"
            elif match := re.fullmatch(r"--?(?:no)?config\.([^=]+)(?:=(.*))?", argument):
                several = is_texts(check_key(match[1]))
                if several and match[2] and match[2][0] not in "([\"'":  # as people write them, not as Python does
                    argv[i] = f"--config.{match[1]}={tuple(match[2].split(','))!r}"
        rest = FLAGS(argv)
        if len(rest) > 1:
            raise UserError(f"{rest[1]!r} is not a flag: write --name=value, and see --help")
        return rest
    except flags.Error as error:
        fail(re.sub(r"\s+", " ", str(error)))
    except UserError as error:
        fail(error)
    except (TypeError, ValueError, AttributeError, KeyError, SyntaxError) as error:  # of an override
        fail(re.sub(r"\s+", " ", str(error)))


def run(main: Callable[[], None]) -> None:
    """Parses the flags and runs a command; a `UserError` becomes one line on stderr. A command without a config has the
    flag --plugins, which names them."""
    if "config" not in FLAGS:
        said = "Modules that add rows to the registries, with commas between them; a run needs those that it names."
        flags.DEFINE_list("plugins", [], said, module_name=sys.argv[0])  # which --help then shows

    def guarded(_: list[str]) -> None:
        try:
            load_plugins(FLAGS.plugins if "plugins" in FLAGS else ())
            main()
        except UserError as error:
            fail(error)
        except Stopped as stopped:
            print(f"{stopped}: the same command goes on from there", file=sys.stderr)
            sys.exit(os.EX_TEMPFAIL)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:
            sys.exit(141)

    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().setFormatter(Formatter("%(message)s"))  # a sentence needs no time and line of code
    use_compilation_cache()
    keep_freed_memory()
    app.run(guarded, flags_parser=_parse)
