"""What a worker's folder tells the consumer of its job."""

from __future__ import annotations

from pathlib import Path

import pytest

from plinth.shared.errors import ERROR_TYPES, PlinthError
from plinth.trainer.loop.job_folder import JobFolder


@pytest.mark.parametrize("code", sorted(ERROR_TYPES))
@pytest.mark.parametrize("retry_after_s", [None, 2.5])
def test_an_error_comes_back_as_it_was_raised(
    tmp_path: Path, code: str, retry_after_s: float | None
) -> None:
    """Whole, since what it says besides its words decides whether the job is tried again."""
    raised = ERROR_TYPES[code](
        "wrong 漢 \ud800",
        reason="SO",
        field="spec.train.steps",
        retry_after_s=retry_after_s,
        metadata={"conversation": "3"},
    )
    folder = JobFolder(tmp_path)
    folder.end("failed", error=raised)
    found = folder.error()
    assert isinstance(found, PlinthError)
    assert type(found) is type(raised)
    assert vars(found) == vars(raised)
    assert found.transient == raised.transient
