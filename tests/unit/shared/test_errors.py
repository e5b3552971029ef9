"""What an error tells can be told everywhere, whatever it quotes."""

from __future__ import annotations

import json
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostile_texts import NASTY, nasty_text
from plinth.shared.errors import (
    ERROR_TYPES,
    MAX_MESSAGE_CHARS,
    Aborted,
    DeadlineExceeded,
    PlinthError,
    ResourceExhausted,
    Unavailable,
    described,
    plain,
    to_openai_body,
)
from plinth.trainer.loop.job_folder import JobFolder
from plinth.v1 import jobs_pb2 as pb


class Mute(Exception):
    """An exception that can't say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


@given(st.sampled_from(list(ERROR_TYPES.values())), nasty_text(), nasty_text(), nasty_text())
def test_every_error_can_be_written_wherever_errors_are(kind, message, word, value) -> None:
    error = kind(message, reason=word, field=word, metadata={word: value})
    told = [error.message, error.reason, error.field, *error.metadata, *error.metadata.values()]
    for text in [*told, str(error)]:
        assert type(text) is str
        text.encode()
        assert len(text) <= MAX_MESSAGE_CHARS
        assert not set(text) & {chr(code) for code in range(32) if chr(code) not in "\t\n"}
        assert pb.JobStatus.FromString(pb.JobStatus(error=text).SerializeToString()).error == text
    json.dumps(to_openai_body(error), ensure_ascii=False).encode()
    copy = pickle.loads(pickle.dumps(error))
    assert copy.__dict__ == error.__dict__
    assert error.reason  # a machine reads it: never empty


@given(nasty_text())
def test_a_job_folder_gives_back_what_was_said(tmp_path_factory, message) -> None:
    folder = JobFolder(tmp_path_factory.mktemp("job"))
    error = ERROR_TYPES["DATA_LOSS"](message, reason="WHY")
    folder.end("failed", error=error)
    back = folder.error()
    assert back is not None
    assert (back.code, back.message, back.reason) == (error.code, error.message, "WHY")


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=MAX_MESSAGE_CHARS))
def test_what_can_be_told_is_told_as_it_is(text) -> None:
    assert plain(text) == text
    assert PlinthError(f"a\n\t{text}"[:MAX_MESSAGE_CHARS]).message.startswith("a\n\t")


def test_bytes_of_a_file_name_are_shown_as_bytes() -> None:
    assert plain("caf\udce9.txt") == "caf\\xe9.txt"
    assert plain("half \ud83d") == "half \\ud83d"
    assert plain("\x1b[31mred\x00") == "\\x1b[31mred\\x00"


@pytest.mark.parametrize("text", NASTY)
def test_nothing_that_was_left_out_goes_unsaid(text) -> None:
    told = plain(text, 100)
    assert len(told) <= 100
    if isinstance(text, str) and len(text) > 1000 and text.isprintable():
        assert f"{len(text):,} characters in all" in told


def test_an_exception_without_words_is_named() -> None:
    assert described(Mute()) == "Mute: <a Mute without a text>"
    assert described(ValueError()) == "ValueError"
    assert described(KeyError("a")) == "KeyError: 'a'"
    assert PlinthError(Mute()).message == "<a Mute without a text>"  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, -1.0, 1e300])
def test_a_delay_is_one_that_can_be_waited(seconds) -> None:
    kept = ResourceExhausted("full", retry_after_s=seconds).retry_after_s
    assert kept is None or 0 <= kept <= 366 * 86_400


def test_which_errors_may_pass_by_themselves() -> None:
    may_pass = {kind.code for kind in ERROR_TYPES.values() if kind("x").transient}
    assert may_pass == {kind.code for kind in (Unavailable, DeadlineExceeded, Aborted)}
    assert ResourceExhausted("the queue is full", retry_after_s=5.0).transient
