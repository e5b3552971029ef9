"""Helm where it can be had: `make chart` installs both majors, CI's `make test` neither."""

from __future__ import annotations

import pytest

import rendering


@pytest.fixture(scope="session", params=["Helm 4", "Helm 3"])
def helm(request: pytest.FixtureRequest) -> rendering.Helm:
    """Each Helm in turn; skipped where it is not installed."""
    found = {one.name: one for one in rendering.engines()}
    if request.param not in found:
        pytest.skip(f"{request.param} is not installed here; `make chart` gets it")
    return found[request.param]


@pytest.fixture(scope="session")
def any_helm() -> rendering.Helm:
    """One Helm, whichever is there."""
    found = rendering.engines()
    if not found:
        pytest.skip("no Helm is installed here; `make chart` gets it")
    return found[0]
