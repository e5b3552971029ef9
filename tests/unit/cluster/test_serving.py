"""What is told of an application that does not start."""

from __future__ import annotations

import pytest

from plinth.cluster.serving import shortened

TRACEBACK = """\
The deployment failed to start 3 times in a row. Error:
ray::ServeReplica:inference-chat.initialize_and_get_metadata()
  File "plinth/inference/loading.py", line 75, in load_engine
    check_draft(mode, place, folder, draft.config, decoder.config)
plinth.shared.errors.InvalidArgument: """


@pytest.mark.parametrize("message", ["the draft's vocabulary is not the model's: id 3", "x" * 500])
def test_of_a_traceback_the_error_is_told(message: str) -> None:
    assert shortened(TRACEBACK + message) == message


def test_what_is_no_error_of_ours_keeps_its_end() -> None:
    assert shortened("no room for a replica") == "no room for a replica"
    assert shortened("x" * 700 + "KeyError: 'a'") == ("x" * 700 + "KeyError: 'a'")[-600:]
