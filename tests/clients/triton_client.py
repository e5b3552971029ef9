"""NVIDIA's tritonclient over KServe's Open Inference Protocol: lists, readies, asks, streams."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

BASE, KEY, MODEL, _, ADDRESS = sys.argv[1:6]
WITH_KEY = {"authorization": f"Bearer {KEY}"}
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
PARIS = "The capital of France is Paris."


def tensor(name: str, *values: Any) -> triton.InferInput:
    datatype = "BOOL" if isinstance(values[0], bool) else "BYTES"
    made = triton.InferInput(name, [len(values)], datatype)
    made.set_data_from_numpy(np.array(values, dtype=bool if datatype == "BOOL" else np.object_))
    return made


def texts(result: triton.InferResult) -> list[str]:
    return [text.decode() for text in result.as_numpy("text_output")]


def whole(client: triton.InferenceServerClient) -> str:
    greedy = tensor("sampling_parameters", json.dumps({"temperature": 0, "max_tokens": 32}))
    inputs = [tensor("messages", json.dumps(CAPITAL)), greedy]
    result = client.infer(MODEL, inputs, headers=WITH_KEY, request_id="a")
    (answer,) = texts(result)
    assert answer == PARIS, answer
    assert result.as_numpy("finish_reason")[0] == b"stop"
    assert result.as_numpy("num_output_tokens")[0] >= 7
    assert result.get_response().id == "a"

    prompts = tensor("text_input", "One, two, three,", "Monday, Tuesday,")
    both = texts(client.infer(MODEL, [prompts, greedy], headers=WITH_KEY))
    assert "four" in both[0] and "Wednesday" in both[1], both
    # Parameters of the request in place of the tensor.
    by_parameters = client.infer(
        MODEL, inputs[:1], headers=WITH_KEY, parameters={"temperature": 0.0, "max_tokens": 3}
    )
    assert PARIS.startswith(texts(by_parameters)[0].strip())
    assert by_parameters.as_numpy("finish_reason")[0] == b"length"
    return answer


def streamed(client: triton.InferenceServerClient) -> int:
    heard: list[tuple[triton.InferResult | None, InferenceServerException | None]] = []
    client.start_stream(lambda result, error: heard.append((result, error)), headers=WITH_KEY)
    inputs = [
        tensor("messages", json.dumps(CAPITAL)),
        tensor("sampling_parameters", json.dumps({"temperature": 0, "max_tokens": 32})),
        tensor("stream", True),
    ]
    client.async_stream_infer("no-such-model", inputs, request_id="wrong")
    client.async_stream_infer(MODEL, inputs, request_id="right")
    client.stop_stream()  # when all is answered
    (_, error), *pieces = heard
    assert error is not None and "no-such-model" in error.message(), heard[0]
    assert all(problem is None for _, problem in pieces), pieces
    results = [result for result, _ in pieces if result is not None]
    assert "".join(texts(result)[0] for result in results) == PARIS
    ends = [
        result.get_response().parameters["triton_final_response"].bool_param for result in results
    ]
    assert ends == [False] * (len(ends) - 1) + [True]
    return len(results)


def main() -> None:
    with triton.InferenceServerClient(ADDRESS) as client:
        assert client.is_server_live(headers=WITH_KEY)
        assert client.is_server_ready(headers=WITH_KEY)
        index = client.get_model_repository_index(headers=WITH_KEY)
        (listed,) = [model for model in index.models if model.name == MODEL]
        assert listed.state == "READY"
        assert client.is_model_ready(MODEL, headers=WITH_KEY)
        assert client.is_model_ready(MODEL, listed.version, headers=WITH_KEY)
        assert not client.is_model_ready("no-such-model", headers=WITH_KEY)
        metadata = client.get_model_metadata(MODEL, headers=WITH_KEY)
        assert {one.name for one in metadata.inputs} >= {"text_input", "messages"}
        try:
            client.is_server_ready()
        except InferenceServerException as error:
            assert error.status() == "StatusCode.UNAUTHENTICATED", error
        else:
            raise AssertionError("it answered without a key")
        answer = whole(client)
        pieces = streamed(client)
    print(f"{MODEL} {listed.version}: {answer!r}, then in {pieces} pieces")


main()
