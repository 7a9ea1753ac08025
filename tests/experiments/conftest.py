"""Sweeps of tests stand beside each other, and share no runs unless a test asks for that."""

from collections.abc import Iterator

import pytest

from experiments.lab import shared


@pytest.fixture(scope="session", autouse=True)
def _alone() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "RESULTS", ())
        yield
