"""Judgements to pairs, pairs to lines and artifacts, as the trainer reads them."""

from __future__ import annotations

import json
import random
from itertools import combinations
from pathlib import Path

import pytest

import trainings
from plinth.algos.intervals import wilson
from plinth.coordinator.preferences.dataset import publish_pairs
from plinth.coordinator.preferences.pairs import judged_pairs, read_lines
from plinth.coordinator.preferences.ranking import tiers
from plinth.coordinator.preferences.report import (
    Snapshot,
    answers_gold,
    make_report,
    model_wins,
    position_bias,
)
from plinth.internal.v1 import preference_records_pb2 as rec
from plinth.shared.errors import FailedPrecondition, InvalidArgument
from plinth.shared.store import ArtifactStore
from plinth.trainer.data.corpus import read_split, write_corpus
from plinth.trainer.data.documents import Document, parse_document
from plinth.trainer.data.tokenize import tokenize_corpus
from plinth.v1 import chat_pb2
from plinth.v1 import preferences_pb2 as pb

HUMAN, RULE, MODEL = (
    pb.JUDGEMENT_SOURCE_HUMAN,
    pb.JUDGEMENT_SOURCE_RULE,
    pb.JUDGEMENT_SOURCE_MODEL,
)


def task(name: str, responses: int = 2, **fields: object) -> rec.PreferenceTaskRecord:
    return rec.PreferenceTaskRecord(
        task_id=name,
        prompt=[chat_pb2.ChatMessage(role="user", content=f"prompt {name}")],
        responses=[
            pb.PreferenceResponse(response_id=f"r{i}", text=f"{name} text {i}", model=f"m{i}@1")
            for i in range(responses)
        ],
        **fields,  # type: ignore[arg-type]
    )


def says(name: str, *order: list[str], who: str = "ann", **fields: object) -> rec.JudgementRecord:
    values: dict[str, object] = {"source": HUMAN} | fields
    return rec.JudgementRecord(task_id=name, annotator=who, ranking=tiers(order), **values)  # type: ignore[arg-type]


def seen(tasks: list[rec.PreferenceTaskRecord], judgements: list[rec.JudgementRecord]) -> Snapshot:
    by_id = {one.task_id: one for one in tasks}
    return Snapshot("c", len(judgements), judgements, by_id)


def pairs(snapshot: Snapshot, **selection: object) -> list[tuple[str, str, float]]:
    found = judged_pairs(snapshot, pb.PairSelection(**selection))  # type: ignore[arg-type]
    return [(p.chosen, p.rejected, p.labels["agreement"]) for p in found]


def test_a_full_order_gives_every_pair_and_a_tie_none() -> None:
    one = seen([task("t", 4)], [says("t", ["r2"], ["r0", "r3"], ["r1"])])
    found = {(a[-1], b[-1]) for a, b, _ in pairs(one)}
    assert found == {("2", "0"), ("2", "3"), ("2", "1"), ("0", "1"), ("3", "1")}


def test_what_gives_no_pair() -> None:
    gold = task("g", gold=tiers([["r0"], ["r1"]]))
    judgements = [
        says("t", all_bad=True),
        says("t", ["r0", "r1"], who="bob"),
        says("g", ["r0"], ["r1"]),
        says("d", ["r0"], ["r1"]),
        says("d", ["r1"], ["r0"], who="bob"),  # a draw
    ]
    assert pairs(seen([task("t"), task("d"), gold], judgements)) == []


def test_labels_and_selection() -> None:
    judgements = [
        says("t", ["r1"], ["r0"], reason="clear"),
        says("t", ["r1"], ["r0"], who="length", source=RULE),
        says("t", ["r0"], ["r1"], who="chat@1", source=MODEL),
        says("t", ["r0", "r1"], who="bob"),
    ]
    one = seen([task("t")], judgements)
    (found,) = judged_pairs(one, pb.PairSelection())
    assert found.labels == {
        "source": "human+rule",
        "annotators": ["ann", "length"],
        "agreement": 0.5,
        "chosen_model": "m1@1",
        "rejected_model": "m0@1",
        "reasons": ["clear"],
        "task_id": "t",
    }
    assert pairs(one, min_agreement=0.51) == []
    assert pairs(one, sources=[MODEL]) == [("t text 0", "t text 1", 1.0)]
    assert pairs(one, sources=[HUMAN]) == [("t text 1", "t text 0", 0.5)]


@pytest.mark.parametrize("seed", range(8))
def test_pairs_against_a_naive_count(seed: int) -> None:
    chance = random.Random(seed)
    tasks = [task(f"t{i}", chance.randrange(2, 6)) for i in range(10)]
    judgements = []
    places: dict[tuple[str, str], dict[str, int]] = {}
    for one in tasks:
        for who in ("ann", "bob", "cat"):
            ids = [response.response_id for response in one.responses]
            place = {r: chance.randrange(len(ids)) for r in ids}
            order = [[r for r in ids if place[r] == p] for p in sorted(set(place.values()))]
            judgements.append(says(one.task_id, *order, who=who))
            places[one.task_id, who] = place
    wanted = set()
    for one in tasks:
        for a, b in combinations([response.response_id for response in one.responses], 2):
            told = [places[one.task_id, who] for who in ("ann", "bob", "cat")]
            for_a = sum(place[a] < place[b] for place in told)
            for_b = sum(place[a] > place[b] for place in told)
            text = {r.response_id: r.text for r in one.responses}
            if for_a != for_b:
                better, worse = (a, b) if for_a > for_b else (b, a)
                share = round(max(for_a, for_b) / 3, 6)
                wanted.add((text[better], text[worse], share))
    assert set(pairs(seen(tasks, judgements))) == wanted


@pytest.mark.parametrize("cut_off", [0, 1])
@pytest.mark.parametrize("shape", ["trl", "hh"])
def test_an_answer_that_its_length_ended_stays_one(shape: str, cut_off: int) -> None:
    """From the response to the trainer's document, and from an exported line to a response."""
    one = task("t")
    one.responses[cut_off].cut_off = True
    (pair,) = judged_pairs(seen([one], [says("t", ["r0"], ["r1"])]), pb.PairSelection())
    line = pair.line(shape)
    read = parse_document(line, "line")
    assert (read.cut_off, read.rejected_cut_off) == (not cut_off, bool(cut_off))
    ((_, again, _),) = read_lines(pb.ImportPairsRequest(jsonl=line.encode()), "c")
    assert {r.text: r.cut_off for r in again.responses} == {
        r.text: r.cut_off for r in one.responses
    }


@pytest.mark.parametrize("shape", ["trl", "hh"])
def test_the_trainer_reads_every_line(shape: str) -> None:
    one = task("t")
    one.prompt.insert(0, chat_pb2.ChatMessage(role="assistant", content="Hello."))
    one.prompt.insert(0, chat_pb2.ChatMessage(role="user", content="Grüße\n\nall"))
    (pair,) = judged_pairs(seen([one], [says("t", ["r0"], ["r1"])]), pb.PairSelection())
    read = parse_document(pair.line(shape), "line")
    assert read == Document(
        messages=(
            ("user", "Grüße\n\nall"),
            ("assistant", "Hello."),
            ("user", "prompt t"),
            ("assistant", "t text 0"),
        ),
        rejected="t text 1",
        source="human",
    )


def test_what_hh_cannot_hold() -> None:
    system, forged = task("s"), task("f")
    system.prompt.insert(0, chat_pb2.ChatMessage(role="system", content="Be brief."))
    forged.responses[0].text = "Sure.\n\nHuman: and now?"
    for one, words in ((system, "no system message"), (forged, "can't be told from a turn")):
        judged = seen([one], [says(one.task_id, ["r0"], ["r1"])])
        (pair,) = judged_pairs(judged, pb.PairSelection())
        pair.line("trl")
        with pytest.raises(InvalidArgument, match=words):
            pair.line("hh")


def judged(count: int) -> Snapshot:
    tasks = [task(f"t{i}", 3) for i in range(count)]
    return seen(tasks, [says(f"t{i}", ["r0"], ["r1"], ["r2"]) for i in range(count)])


def publish(store: ArtifactStore, snapshot: Snapshot, **options: object) -> tuple[object, bool]:
    values: dict[str, object] = {"at_least": 1, "validation_fraction": 0.2} | options
    return publish_pairs(store, "prefs", snapshot, pb.PairSelection(), **values)  # type: ignore[arg-type]


def test_an_artifact_is_split_as_the_trainer_would(store: ArtifactStore, tmp_path: Path) -> None:
    snapshot = judged(40)
    record, reused = publish(store, snapshot)
    assert not reused
    assert record.kind == "corpus"  # type: ignore[attr-defined]
    folder = store.fetch(record)  # type: ignore[arg-type]
    lines = [pair.line("trl") for pair in judged_pairs(snapshot, pb.PairSelection())]
    documents = [parse_document(line, "line") for line in lines]
    counts = write_corpus(iter(documents), tmp_path / "own", source="t", validation_fraction=0.2)
    about = json.loads((folder / "corpus.json").read_text())
    for split in ("train", "validation"):
        ours, theirs = list(read_split(folder, split)), list(read_split(tmp_path / "own", split))
        assert ours == theirs
        assert about["documents"][split] == counts.documents[split] == len(ours)
        assert about["bytes"][split] == counts.bytes[split]
    assert about["form"] == counts.form == "pairs"
    prompts = [{d.messages[:-1] for d in read_split(folder, s)} for s in ("train", "validation")]
    assert not prompts[0] & prompts[1]
    text = (folder / "train" / "documents-00000.jsonl").read_text()
    first = json.loads(text.splitlines()[0])
    assert (first["source"], first["annotators"], first["agreement"]) == ("human", ["ann"], 1.0)
    metrics = record.manifest["metrics"]  # type: ignore[attr-defined]
    assert (metrics["pairs"], metrics["revision"]) == (120, 40)


def test_the_trainer_makes_a_dataset_of_it(store: ArtifactStore, tmp_path: Path) -> None:
    record, _ = publish(store, judged(12))
    tokenizer = trainings.tokenizer(tmp_path / "tokenizer")
    info = tokenize_corpus(
        store.fetch(record),  # type: ignore[arg-type]
        tokenizer,
        tmp_path / "dataset",
        tokenizer_ref="t@1",
        tokenizer_digest="sha256:0",
        **trainings.chatml(tokenizer),
    )
    assert info.form == "pairs"
    assert sum(info.splits[split].documents for split in ("train", "validation")) == 2 * 36


def test_the_same_pairs_are_the_same_version(store: ArtifactStore) -> None:
    first, _ = publish(store, judged(5))
    again, reused = publish(store, judged(5))
    assert (again, reused) == (first, True)
    more, reused = publish(store, judged(6))
    assert not reused
    assert more.version == first.version + 1  # type: ignore[attr-defined]
    with pytest.raises(FailedPrecondition, match="gives 15 pairs from 5 judgements, 16 are needed"):
        publish(store, judged(5), at_least=16)
    with pytest.raises(FailedPrecondition) as caught:
        publish(store, seen([task("t")], [says("t", ["r0", "r1"])]))
    assert caught.value.reason == "TOO_FEW_PAIRS"


@pytest.mark.parametrize(("count", "fraction"), [(2, 0.01), (2, 0.49), (7, 0.001), (1, 0.2)])
def test_each_side_gets_something_where_there_is_enough(
    store: ArtifactStore, count: int, fraction: float
) -> None:
    record, _ = publish(store, judged(count), validation_fraction=fraction)
    folder = store.fetch(record)  # type: ignore[arg-type]
    sizes = [len(list(read_split(folder, split))) for split in ("train", "validation")]
    assert sum(sizes) == 3 * count
    assert sizes[0]
    assert bool(sizes[1]) == (count > 1)


def test_position_bias_by_hand() -> None:
    shown = {"shown": ["r1", "r0"]}
    judgements = [
        says("t", ["r1"], ["r0"], **shown),
        says("t", ["r1"], ["r0"], **shown),
        says("t", ["r0"], ["r1"], **shown),
        says("t", ["r0", "r1"], **shown),  # undecided
        says("t", all_bad=True, **shown),
        says("t", ["r1"], ["r0"], source=RULE),  # saw no order
    ]
    bias = position_bias(judgements)
    assert (bias.value, bias.count) == (pytest.approx(2 / 3), 3)
    assert (bias.lower, bias.upper) == wilson(2, 3)


def test_gold_asks_for_what_it_tells_apart() -> None:
    gold = tiers([["r1"], ["r0", "r2"]])  # the best is known, no more
    assert answers_gold(says("g", ["r1"], ["r2"], ["r0"]), gold)
    assert answers_gold(says("g", ["r1"], ["r0", "r2"]), gold)
    assert not answers_gold(says("g", ["r1", "r0"], ["r2"]), gold)
    assert not answers_gold(says("g", all_bad=True), gold)


def test_wins_of_models() -> None:
    same = task("s")
    same.responses[1].model = "m0@1"
    unknown = task("u")
    unknown.responses[0].model = ""
    judgements = [
        says("t", ["r2"], ["r0", "r1"]),
        says("s", ["r0"], ["r1"]),
        says("u", ["r0"], ["r1"]),
    ]
    names, wins = model_wins(seen([task("t", 3), same, unknown], judgements))
    assert names == ["m0@1", "m1@1", "m2@1"]
    assert wins == [[0, 0.5, 0], [0.5, 0, 0], [1, 1, 0]]
    report = make_report(seen([task("t", 3)], judgements[:1]), 1)
    assert report.strengths_shrunk
    assert report.models[0].model == "m2@1"
    assert not report.human_agreement.HasField("nominal")


def imported(
    line: dict[str, object] | str, **request: object
) -> tuple[object, rec.JudgementRecord]:
    text = line if isinstance(line, str) else json.dumps(line)
    ask = pb.ImportPairsRequest(jsonl=text.encode(), **request)  # type: ignore[arg-type]
    ((_, *found),) = read_lines(ask, "c")
    return tuple(found)


def test_lines_in_every_shape_become_the_same_task() -> None:
    prompt = {"role": "user", "content": "p"}
    a, b = ({"role": "assistant", "content": text} for text in "ab")
    shapes = [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": [prompt], "chosen": [a], "rejected": [b]},
        {"chosen": [prompt, a], "rejected": [prompt, b]},
        {
            "chosen": "\n\nHuman: p\n\nAssistant: a",
            "rejected": "\n\nHuman: p\n\nAssistant: b",
        },
    ]
    found = [imported(shape, source=RULE, annotator="x") for shape in shapes]
    for made, judgement in found:
        made.ClearField("created_unix_ms")  # type: ignore[attr-defined]
        assert (made, judgement) == found[0]
    made, judgement = found[0]
    best = judgement.ranking[0].response_ids[0]
    assert next(r.text for r in made.responses if r.response_id == best) == "a"  # type: ignore[attr-defined]
    # The other way round is the same task, judged otherwise.
    other, reverse = imported({"prompt": "p", "chosen": "b", "rejected": "a"}, source=RULE)
    assert other.task_id == made.task_id  # type: ignore[attr-defined]
    assert reverse.ranking[0] == judgement.ranking[1]


def test_who_says_so() -> None:
    line = {"prompt": "p", "chosen": "a", "rejected": "b"}
    _, judgement = imported({**line, "source": "rule:truncated"})
    assert (judgement.source, judgement.annotator) == (RULE, "truncated")
    _, judgement = imported({**line, "source": "human", "annotators": ["ann"]})
    assert (judgement.source, judgement.annotator) == (HUMAN, "ann")
    _, judgement = imported({**line, "source": "human"}, source=MODEL)
    assert (judgement.source, judgement.annotator) == (MODEL, "import")
    for wrong in ("human+rule", "", "me"):
        with pytest.raises(InvalidArgument, match="line 1: whose judgement"):
            imported({**line, "source": wrong})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"prompt": "p", "chosen": "a"}',
        '{"prompt": "p", "chosen": "a", "rejected": "a"}',
        '{"prompt": "p", "chosen": "a", "rejected": "\\ud800"}',
        '{"prompt": "p", "chosen": " ", "rejected": "a"}',
        "\xff",
        "[" * 5000,
        "x\n" * 1001,
    ],
)
def test_what_is_no_line(text: str) -> None:
    ask = pb.ImportPairsRequest(jsonl=text.encode("latin-1"), source=RULE)
    with pytest.raises(InvalidArgument):
        read_lines(ask, "c")
