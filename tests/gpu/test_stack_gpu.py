"""A whole stack whose shard is on an accelerator: killed, it serves the same again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from real_stack import RealStack, until

pytestmark = pytest.mark.gpu


@pytest.fixture
def served(tmp_path: Path, device: str) -> Iterator[RealStack]:
    stack = RealStack.up(tmp_path / "stack", shards=1, engine__device=device)
    yield stack
    stack.down()


def test_a_killed_shard_serves_again(served: RealStack) -> None:
    client = openai.OpenAI(api_key=served.key, base_url=f"{served.rest}/v1")

    def capital() -> str:
        answer = client.chat.completions.create(
            model=served.model,
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            temperature=0,
        )
        return answer.choices[0].message.content or ""

    before = capital()
    assert "Paris" in before
    (old,) = served.replicas("inference")
    served.kill("ServeReplica:inference")
    until(lambda: [r for r in served.replicas("inference") if r.id != old.id], "a successor")
    assert capital() == before
