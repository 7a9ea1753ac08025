"""Any TFDS dataset, by its name: already prepared, or downloaded and prepared in the cache folder."""

import contextlib
import difflib
import importlib.util
import inspect
import logging
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterable
from pathlib import Path

import tensorflow_datasets as tfds

from transformer.config import DataConfig
from transformer.data.builder import prepare, quiet
from transformer.data.caching import cache_root, locked, remove, writable
from transformer.data.sources.built import from_builder
from transformer.data.sources.source import Source
from transformer.data.sources.survey import surveyed
from transformer.errors import UserError

logger = logging.getLogger(__name__)

# Without TensorFlow, TFDS stops registering its older datasets before it reaches these folders.
TEXT_MODULES = ("text", "translate", "summarization", "question_answering", "text_simplification")


def load(data: DataConfig, own: Iterable[str]) -> Source:
    """The TFDS dataset `data.name`: from data.dir, from TFDS's own folder, or downloaded and prepared in the cache
    folder. UserError: there is none, or it cannot be loaded; `own` are the names that are not TFDS datasets, for its
    message."""
    with quiet():
        for module in TEXT_MODULES:
            with contextlib.suppress(ImportError):
                importlib.import_module(f"tensorflow_datasets.{module}")
        try:
            builder = tfds.builder(data.name, data_dir=data.dir or None)
            if not data.dir and not builder.is_prepared():
                builder = tfds.builder(data.name, data_dir=cache_root(data) / "tfds")
            if not data.dir and not builder.is_prepared():
                builder = tfds.builder(data.name, data_dir=writable(cache_root(data) / "tfds"))
            prepared = builder.is_prepared()
        except tfds.core.DatasetNotFoundError as error:
            raise UserError(_no_such_dataset(data, list(own))) from error
        except Exception as error:  # wrong configuration or version, or any error of a dataset's code
            raise UserError(f"data.name={data.name!r} cannot be opened ({_brief(error)}): check the name.") from error
    if not prepared and data.dir:
        raise UserError(
            f"{data.name} is not prepared in data.dir={data.dir}: prepare it there with TFDS, or leave data.dir empty "
            "to download it."
        )
    if not prepared:
        if hasattr(inspect.getmodule(type(builder)), "tf") and not importlib.util.find_spec("tensorflow"):
            logger.warning("%s's own code uses TensorFlow, which is not installed: preparing it may fail", data.name)
        try:
            _check_network(builder)
            logger.warning("downloading and preparing %s in %s, once", data.name, builder.data_dir)
            builder = _prepare(data.name, builder)
        except Exception as error:  # any error of a dataset's own code or of the network
            raise UserError(
                f"{data.name} is not prepared on this machine and could not be downloaded and prepared "
                f'({_brief(error)}): prepare it where that works, with file_format="array_record", and name its '
                "folder in data.dir."
            ) from error
    return surveyed(from_builder(data.name, builder, fingerprint=""), builder, data)


def _prepare(name: str, builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetBuilder:
    """Prepares a dataset in its folder, where it is found again by name; other processes wait meanwhile."""
    path = Path(builder.data_path)
    with locked(path), quiet():
        # Reads what another process has prepared while this one waited.
        builder = tfds.builder(name, data_dir=builder.data_dir_root)
        if not builder.is_prepared():
            for stale in path.parent.glob(f"incomplete.*_{path.name}"):  # left by killed processes
                remove(stale)
            prepare(builder)
    return builder


def _check_network(builder: tfds.core.DatasetBuilder) -> None:
    """Raises at once if no host of a dataset resolves; TFDS would retry for minutes."""
    hosts = {host for url in builder.url_infos or {} if (host := urllib.parse.urlsplit(url).hostname)}
    failure = None
    for host in [] if urllib.request.getproxies() else sorted(hosts):
        try:
            socket.getaddrinfo(host, 443)
            return
        except OSError as error:
            failure = ConnectionError(f"{host}: {error.strerror}")
    if failure:
        raise failure


def _no_such_dataset(data: DataConfig, own: list[str]) -> str:
    name = re.split("[/:]", data.name)[0]
    names = [*own, *tfds.list_builders(with_community_datasets=False)]
    if name in names:  # TFDS knows it, but it is not prepared
        return f"{data.name} is not prepared in data.dir={data.dir}: prepare it there with TFDS."
    near = difflib.get_close_matches(name, names, n=2)
    hint = f"did you mean {' or '.join(map(repr, near))}" if near else f"choose one of {', '.join(own)}"
    return f"There is no dataset {name!r}: {hint}, or name any dataset of TFDS."


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
