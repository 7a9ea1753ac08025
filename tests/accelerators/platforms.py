"""Tests that need a compiler of accelerators."""

import pytest


def needs_compiler(platform: str) -> pytest.MarkDecorator:
    """Marks what runs in `make accelerators-tpu` or `make accelerators-gpu` only, by its platform."""
    return pytest.mark.accelerators(platform=platform)
