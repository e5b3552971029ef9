"""Losses, advantages and KL against figures that TRL's own code gave, without TRL."""

from __future__ import annotations

import pytest

import trl_figures

CASES = trl_figures.kept()


@pytest.mark.parametrize("name", CASES)
def test_trls_own_figures(name) -> None:
    trl_figures.compare(CASES[name])


def test_there_are_figures_of_everything() -> None:
    assert {case["kind"] for case in CASES.values()} == trl_figures.OURS.keys()
