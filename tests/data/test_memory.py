"""Preparing and reading a corpus takes memory that does not grow with it."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.data.corpora import sentences, stored

SCRIPT = """
    import json, os, resource, sys
    from pathlib import Path
    from tests.data.test_shards import KINDS
    from transformer.config import DataConfig
    from transformer.data.batches.corpus import token_shards
    from transformer.data.batches.mixed import in_blocks
    from transformer.data.batches.packed import PackedBatches
    from transformer.data.sources.stored import from_store
    from transformer.data.store import Store

    def peak(whose):
        return resource.getrusage(whose).ru_maxrss * 1024

    data = DataConfig(cache=sys.argv[2], max_len=256, batch_tokens=65_536)
    source = from_store("mine", Store(Path(sys.argv[1])))
    before = peak(resource.RUSAGE_SELF)
    corpus = token_shards(source, "train", ["text"], KINDS["wordpiece"], data)
    batches = in_blocks(PackedBatches, corpus, data=data, seed=0)
    steps = batches.steps_per_epoch
    for step in range(0, steps, max(1, steps // 60)):
        batches.batch(step)
    own, children = peak(resource.RUSAGE_SELF), peak(resource.RUSAGE_CHILDREN)
    print(json.dumps({"shards": len(corpus), "more": own - before, "children": children}))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    found = {}
    some = sentences(20_000, 20)
    size = sum(len(text.encode()) for text in some)
    for megabytes in (70, 210):
        stored(tmp_path / str(megabytes), {"train": {"text": some * (megabytes * 10**6 // size)}})
        command = [
            sys.executable,
            "-c",
            textwrap.dedent(SCRIPT),
            str(tmp_path / str(megabytes)),
            str(tmp_path / "cache"),
        ]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        found[megabytes] = json.loads(ended.stdout.splitlines()[-1])
    small, large = found[70], found[210]
    assert small["shards"] > 1
    assert large["shards"] > 2.5 * small["shards"] - 1
    assert large["children"] < 400e6
    assert large["more"] < 250e6
    assert large["more"] < small["more"] + 60e6
