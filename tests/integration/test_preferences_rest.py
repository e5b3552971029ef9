"""Preferences over REST: tasks, two annotators, judgements, report, pairs out and in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway_stages import Replica, running_stack, script_text, until
from patience import PATIENCE_S
from plinth.gateway.keys.api_keys import KeyStore
from plinth.shared.errors import Unavailable
from plinth.shared.identity import current_principal
from plinth.shared.rpc.server import GrpcService
from plinth.v1 import preferences_pb2, preferences_pb2_grpc
from preference_stages import JudgingShard, PreferenceStack, running_preferences

BASE = "/v1/preferences"


@pytest.fixture
async def stack(
    tmp_path: Path, redis_server: str, redis_client: object
) -> AsyncIterator[PreferenceStack]:
    async with running_preferences(tmp_path, redis_server) as running:
        yield running


@pytest.fixture
async def client(stack: PreferenceStack) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.client() as opened:
        yield opened


async def post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await client.post(f"{BASE}/{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def get(client: httpx.AsyncClient, path: str, **params: Any) -> dict[str, Any]:
    answer = await client.get(f"{BASE}/{path}", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def task(task_id: str, **fields: Any) -> dict[str, Any]:
    good, bad = f"a good answer to {task_id}", f"bad {task_id}"
    responses = [
        {"response_id": "good", "text": good, "model": "dpo@1"},
        {"response_id": "bad", "text": bad, "model": "sft@1"},
    ]
    return {"task_id": task_id, "prompt": f"Question {task_id}?", "responses": responses, **fields}


async def lease(client: httpx.AsyncClient, annotator: str, **fields: Any) -> dict[str, Any]:
    return await post(client, "leases", {"annotator": annotator, **fields})


async def judge(
    client: httpx.AsyncClient, held: dict[str, Any], *order: list[str], **fields: Any
) -> dict[str, Any]:
    body = {k: held[k] for k in ("task_id", "annotator", "fence")}
    return await post(client, "judgements", {**body, "ranking": list(order), **fields})


async def test_two_annotators_never_hold_one_task(client: httpx.AsyncClient) -> None:
    made = await post(client, "tasks", {"tasks": [task("t1", wanted=2)]})
    assert [one["state"] for one in made["tasks"]] == ["open"]
    held = await lease(client, "ann")
    assert sorted(one["response_id"] for one in held["responses"]) == ["bad", "good"]
    assert not any(one["model"] for one in held["responses"])  # blind
    refused = await client.post(f"{BASE}/leases", json={"annotator": "bob"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "no_task")
    refused = await client.post(f"{BASE}/leases", json={"annotator": "bob", "task_id": "t1"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "task_held")
    stolen = {"task_id": "t1", "annotator": "bob", "fence": held["fence"]}
    refused = await client.post(
        f"{BASE}/judgements", json={**stolen, "ranking": [["good"], ["bad"]]}
    )
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "task_held")
    done = await judge(client, held, ["good"], ["bad"], reason="it answers")
    assert done["revision"] == 1
    assert done["judgement"]["shown"] == [one["response_id"] for one in held["responses"]]
    theirs = await lease(client, "bob")
    assert theirs["fence"] > held["fence"]
    await judge(client, theirs, ["good", "bad"])
    assert (await get(client, "tasks/t1"))["task"]["state"] == "done"
    listed = await get(client, "tasks")
    assert (listed["total"], listed["open"], listed["judgements"]) == (1, 0, 2)


@pytest.mark.parametrize(
    ("ranking", "code"),
    [
        ([["good"], ["nope"]], "ranking_unknown_response"),
        ([["good"], ["good", "bad"]], "ranking_duplicate_response"),
        ([["good"]], "ranking_missing_response"),
    ],
)
async def test_what_is_no_ranking(
    client: httpx.AsyncClient, ranking: list[list[str]], code: str
) -> None:
    await post(client, "tasks", {"tasks": [task("t")]})
    held = await lease(client, "ann")
    body = {k: held[k] for k in ("task_id", "annotator", "fence")}
    refused = await client.post(f"{BASE}/judgements", json={**body, "ranking": ranking})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, code)
    await judge(client, held, all_bad=True)  # the lease is as it was


async def test_what_is_wrong_has_a_name(client: httpx.AsyncClient, stack: PreferenceStack) -> None:
    for path, body, status, word in (
        ("tasks", {"tasks": []}, 400, "tasks"),
        ("tasks", {"tasks": [{"prompt": "x", "responses": ["one"]}]}, 400, "2 to 8"),
        ("tasks", {"tasks": [{"prompt": "x", "responses": ["a", "a"]}]}, 400, "same text"),
        ("tasks", {"tasks": [{"prompt": "", "responses": ["a", "b"]}]}, 400, "prompt"),
        ("tasks", {"tasks": [{"prompt": "x", "nope": 1}]}, 400, "nope"),
        ("leases", {"lease_seconds": 1}, 400, "between 10 and 86400"),
        ("leases", {"annotator": "a b"}, 400, "annotator"),
        ("judgements", {"task_id": "nope", "fence": 1}, 404, "nope"),
        ("judgements", {"task_id": "x", "fence": 1, "reason": "y" * 4001}, 400, "4000"),
        ("model-judgements", {"model": "nope"}, 503, "nope"),
        ("model-judgements", {"model": "chat", "method": "coin"}, 400, "coin"),
        ("datasets", {"name": "Not A Name"}, 400, "name"),
        ("datasets", {"name": "pairs", "at_least": 3}, 400, "0 pairs"),
    ):
        answer = await client.post(f"{BASE}/{path}", json=body)
        assert answer.status_code == status, (path, body, answer.text)
        assert word in answer.json()["error"]["message"], answer.text
    assert (await client.get(f"{BASE}/export?shape=csv")).status_code == 400
    assert (await client.get(f"{BASE}/export?sources=human,nobody")).status_code == 400
    plain, _ = await KeyStore(stack.redis).create("acme", ["inference"])
    async with stack.client(plain) as weak:
        answer = await weak.get(f"{BASE}/report")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "scope_missing")


async def test_report_of_a_collection(client: httpx.AsyncClient) -> None:
    tasks = [task(f"t{i}", wanted=2) for i in range(6)]
    gold = task("g", wanted=10, gold=[["good"], ["bad"]])
    await post(client, "tasks", {"tasks": [*tasks, gold]})
    for name in ("ann", "bob"):
        for index in range(7):
            held = await lease(client, name)
            wrong = (name, index) == ("bob", 0) or (name, held["task_id"]) == ("bob", "g")
            order = (["bad"], ["good"]) if wrong else (["good"], ["bad"])
            await judge(client, held, *order)
    report = await get(client, "report")
    assert (report["tasks"], report["judgements"], report["people"]["pairs"]) == (7, 14, 7)
    alphas = report["people"]
    # 14 values, 2 of them "worse": by hand, D_o = 4, D_e = 2 * 2 * 12 / 13.
    assert alphas["nominal"] == pytest.approx(1 - 4 / (48 / 13))
    by_name = {one["annotator"]: one for one in report["annotators"]}
    assert by_name["ann"]["gold"]["share"] == 1
    assert by_name["bob"]["gold"] == {**by_name["bob"]["gold"], "share": 0, "count": 1}
    assert by_name["bob"]["gold"]["high"] == pytest.approx(0.79345, abs=1e-4)
    assert [one["model"] for one in report["models"]] == ["dpo@1", "sft@1"]
    assert report["models"][0]["comparisons"] == 12
    assert report["models"][0]["strength"] == pytest.approx(0.5 * 2.3979, abs=1e-3)  # log 11
    first = report["first_shown_wins"]
    assert first["count"] == 14
    assert first["low"] < first["share"] < first["high"] or first["share"] in (0, 1)


async def test_pairs_out_and_in_again(client: httpx.AsyncClient, stack: PreferenceStack) -> None:
    await post(client, "tasks", {"tasks": [task(f"t{i}") for i in range(4)]})
    for index in range(4):
        held = await lease(client, "ann")
        if index == 3:
            await judge(client, held, all_bad=True)
        elif index == 2:
            await judge(client, held, ["good", "bad"])
        else:
            await judge(client, held, ["good"], ["bad"], reason="because")
    exported = {}
    for shape in ("trl", "hh"):
        answer = await client.get(f"{BASE}/export", params={"shape": shape, "sources": "human"})
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        exported[shape] = answer.text
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert len(lines) == 2
        assert lines[0]["source"] == "human"
        assert lines[0]["annotators"] == ["ann"]
        assert (lines[0]["chosen_model"], lines[0]["rejected_model"]) == ("dpo@1", "sft@1")
        assert lines[0]["reasons"] == ["because"]
    assert json.loads(exported["trl"].splitlines()[0])["chosen"] == [
        {"role": "assistant", "content": "a good answer to t0"}
    ]
    hh = json.loads(exported["hh"].splitlines()[0])
    assert hh["chosen"] == "\n\nHuman: Question t0?\n\nAssistant: a good answer to t0"

    for shape in ("trl", "hh"):
        for only, imported in (("true", 2), ("false", 2), ("false", 0)):
            answer = await client.post(
                f"{BASE}/import?collection=from-{shape}&check_only={only}",
                content=exported[shape].encode(),
            )
            expected = {"imported": imported, "known": 2 - imported, "contradictions": []}
            told = answer.json()
            looked = [one["line"] for one in told.pop("lines")]
            assert looked == ([1, 2] if only == "true" else [])
            assert told == expected, answer.text
        again = await client.get(f"{BASE}/export", params={"collection": f"from-{shape}"})
        first = json.loads(again.text.splitlines()[0])
        original = json.loads(exported["trl"].splitlines()[0])
        for name in ("prompt", "chosen", "rejected", "source", "annotators", "reasons"):
            assert first[name] == original[name]
    bad = b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt": "p"}\n'
    answer = await client.post(f"{BASE}/import?collection=x&source=rule&first_line=41", content=bad)
    assert answer.status_code == 400
    assert "line 42" in answer.json()["error"]["message"]
    assert (await get(client, "tasks", collection="x"))["total"] == 0  # nothing half done
    answer = await client.post(f"{BASE}/import?collection=x", content=bad.splitlines()[0])
    assert answer.json()["error"]["code"] == "source_missing"

    dataset = await post(client, "datasets", {"name": "pairs", "at_least": 2, "sources": ["human"]})
    assert (dataset["pairs"], dataset["artifact"]["kind"], dataset["revision"]) == (2, "corpus", 4)
    again = await post(client, "datasets", {"name": "pairs", "sources": ["human"]})
    assert again["artifact"]["version"] == 1
    gone = await client.delete(f"{BASE}/collections/from-hh")
    assert gone.json() == {"tasks": 2}
    gone = await client.delete(f"{BASE}/collections/from-hh")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "collection_not_found")


async def test_renewing_skipping_closing(client: httpx.AsyncClient) -> None:
    await post(client, "tasks", {"tasks": [task("a.1"), task("b")]})
    held = await lease(client, "ann", lease_seconds=10)
    mine = {k: held[k] for k in ("task_id", "annotator", "fence")}
    renewed = await post(client, "leases/renew", {**mine, "lease_seconds": 600})
    assert renewed["expires_unix_ms"] > held["expires_unix_ms"]
    await post(client, "leases/release", {**mine, "skip": True})
    assert (await lease(client, "ann"))["task_id"] == "b"
    answer = await client.delete(f"{BASE}/tasks/a.1")
    assert (answer.status_code, answer.json()) == (200, {})
    assert (await client.get(f"{BASE}/tasks/a.1")).status_code == 404
    rule = {"task_id": "b", "source": "rule", "annotator": "length", "ranking": [["bad"], ["good"]]}
    added = await post(client, "judgements", {**rule, "shown": ["good", "bad"]})
    assert (added["judgement"]["source"], added["judgement"]["shown"]) == ("rule", ["good", "bad"])
    wrong = await client.post(f"{BASE}/judgements", json={**rule, "shown": ["good"]})
    assert "each response once" in wrong.json()["error"]["message"]
    nobody = await client.post(f"{BASE}/judgements", json={**rule, "annotator": ""})
    assert nobody.json()["error"]["param"] == "annotator"


async def test_sampled_responses(client: httpx.AsyncClient, stack: PreferenceStack) -> None:
    sampled = {
        "task_id": "s",
        "prompt": "Say it",
        "samples": [{"model": "chat", "count": 3, "seed": 5, "max_tokens": 20}],
    }
    first = await post(client, "tasks", {"tasks": [sampled]})
    assert first["tasks"][0]["state"] in ("sampling", "open")
    made = await ready(client, "s")
    texts = [one["text"] for one in made["responses"]]
    assert len(set(texts)) == 3
    assert texts[0] == script_text(5, 0, 20)
    for one in made["responses"]:
        assert one["model"] == "chat@1"
        assert one["text"] == script_text(one["sampling"]["seed"], 0, 20)
    assert {request.priority for request in stack.stack.shard.requests} == {-1}
    # A model with nothing new to say ends in a task that says so.
    blank = {**sampled, "task_id": "e", "samples": [{"model": "chat", "count": 8, "seed": 1}]}
    stack.stack.shard.end_after = -1  # the first token ends every answer
    await post(client, "tasks", {"tasks": [blank]})
    failed = await ready(client, "e", "failed")
    assert "empty" in failed["error"]


async def ready(client: httpx.AsyncClient, task_id: str, state: str = "open") -> dict[str, Any]:
    found: dict[str, Any] = {}

    async def look() -> bool:
        found.update((await get(client, f"tasks/{task_id}"))["task"])
        return bool(found["state"] == state)

    await eventually(look)
    return found


async def eventually(look: Any, timeout_s: float = PATIENCE_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not await look():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_model_judges(client: httpx.AsyncClient, stack: PreferenceStack) -> None:
    """The scripted judge likes length; with a bias for whatever is "A" it contradicts itself."""
    shard = stack.stack.shard
    assert isinstance(shard, JudgingShard)
    three = {
        "task_id": "three",
        "prompt": "x",
        "responses": [{"response_id": f"r{n}", "text": "y" * n} for n in (2, 4, 3)],
        "wanted": 0,
    }
    await post(client, "tasks", {"tasks": [task("two", wanted=0), three]})
    asked = await post(client, "model-judgements", {"model": "chat"})
    assert asked == {"queued": 2, "annotator": "chat@1/pairwise"}

    async def judged(count: int) -> None:
        async def look() -> bool:
            return bool((await get(client, "tasks"))["judgements"] == count)

        await eventually(look)

    await judged(2)
    assert (await post(client, "model-judgements", {"model": "chat"}))["queued"] == 0
    asked = await post(client, "model-judgements", {"model": "chat", "method": "rubric"})
    assert asked == {"queued": 2, "annotator": "chat@1/rubric"}
    await judged(4)
    answer = await client.get(f"{BASE}/export")
    pairs = [json.loads(line) for line in answer.text.splitlines()]
    found = {(p["chosen"][0]["content"], p["rejected"][0]["content"]): p for p in pairs}
    assert {"yyyy", "yyy"} == {a for a, _ in found if a.startswith("y")}
    assert ("yyyy", "yy") in found
    assert ("yyy", "yy") in found
    assert all(p["source"] == "model" for p in pairs)
    assert found["yyyy", "yy"]["annotators"] == ["chat@1/pairwise", "chat@1/rubric"]

    shard.bias = 1000.0
    criteria = {"model": "chat", "criteria": "length", "task_ids": ["two"]}
    asked = await post(client, "model-judgements", criteria)
    assert asked["queued"] == 1
    assert asked["annotator"].startswith("chat@1/pairwise/")
    await judged(5)
    report = await get(client, "report")
    assert {one["source"] for one in report["annotators"]} == {"model"}
    assert not report["people"]["pairs"]
    by_name = {one["annotator"]: one for one in report["annotators"]}
    assert by_name[asked["annotator"]]["judgements"] == 1
    # It disagreed with itself, so it counts as a tie: agreement on "two" is no longer whole.
    lines = (await client.get(f"{BASE}/export")).text.splitlines()
    two = next(p for p in map(json.loads, lines) if p["task_id"] == "two")
    assert two["agreement"] == pytest.approx(2 / 3, abs=1e-6)
    await until(lambda: shard.running == 0)


class Exporting(preferences_pb2_grpc.PreferenceServiceServicer):
    """A coordinator that exports three lines; one that dies says that it can't go on."""

    def __init__(self, *, dies_after: int = 3) -> None:
        self.dies_after = dies_after
        self.asked: list[tuple[str, str]] = []  # the position to go on from, the tenant

    async def ExportPairs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.asked.append((request.resume_token, current_principal().tenant))
        for line in range(int(request.resume_token or 0), 3):
            if line >= self.dies_after:
                raise Unavailable("this coordinator is stopping")
            yield preferences_pb2.ExportPairsResponse(
                jsonl=b"%d\n" % line, resume_token=str(line + 1)
            )


async def test_an_export_goes_on_at_another_coordinator(
    tmp_path: Path, redis_server: str, redis_client: object
) -> None:
    async with running_stack(tmp_path, redis_server) as stack:
        dying, other = Exporting(dies_after=2), Exporting()

        async def coordinator(number: int, servicer: Exporting) -> None:
            service = GrpcService(
                "plinth.v1.PreferenceService",
                lambda server: preferences_pb2_grpc.add_PreferenceServiceServicer_to_server(
                    servicer, server
                ),
                {"*": "preferences"},
            )
            id_ = f"coordinator-{number}"
            replica = Replica(stack.settings, redis_server, "coordinator", id_, service)
            stack.replicas[id_] = replica
            await replica.start({"running": str(number)})  # the first is the less busy one

        await coordinator(0, dying)
        await coordinator(1, other)
        headers = {"authorization": f"Bearer {stack.key}"}
        async with httpx.AsyncClient(base_url=stack.url, headers=headers) as client:
            answer = await client.get(f"{BASE}/export")
        assert answer.text == "0\n1\n2\n"
        assert (dying.asked, other.asked) == ([("", "default")], [("2", "default")])
