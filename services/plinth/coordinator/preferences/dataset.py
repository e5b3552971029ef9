"""Judged pairs as an immutable corpus artifact: what a step `data` makes a dataset of.

`train/` and `validation/` hold `documents-00000.jsonl`, one pair a line in TRL's shape with its
labels; a prompt with all its pairs lands on one side, by its hash, as everywhere in Plinth. The
same pairs selected in the same way are the same version. Blocks; called in a thread.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plinth.coordinator.preferences.pairs import (
    JudgedPair,
    comparisons,
    judged_pairs,
    source_word,
)
from plinth.coordinator.preferences.report import Snapshot, agreement
from plinth.shared.errors import FailedPrecondition
from plinth.shared.intake import Intake
from plinth.shared.splits import SPLITS, held_out, prompt_key
from plinth.shared.step_versions import STEP_VERSIONS
from plinth.shared.store import ArtifactRecord, ArtifactStore
from plinth.v1 import preferences_pb2 as pb

DEFAULT_FRACTION = 0.1


def publish_pairs(
    store: ArtifactStore,
    name: str,
    seen: Snapshot,
    selection: pb.PairSelection,
    *,
    at_least: int,
    validation_fraction: float,
) -> tuple[ArtifactRecord, bool]:
    """(the artifact, whether it was there already). FailedPrecondition when there are fewer than
    `at_least` pairs (1 at the least)."""
    intake = comparisons()
    pairs = list(judged_pairs(seen, selection, intake))
    if len(pairs) < max(1, at_least):
        raise FailedPrecondition(
            f"collection {seen.collection} gives {len(pairs)} pairs from {seen.revision} "
            f"judgements, {max(1, at_least)} are needed: judge more, or ask for less (ties, "
            "draws and gold questions give no pair)",
            reason="TOO_FEW_PAIRS",
            field="min_pair_count",
        )
    sides = _split(pairs, validation_fraction)
    lines = {split: [pair.line("trl") for pair in sides[split]] for split in SPLITS}
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update("".join(f"{line}\n" for line in lines[split]).encode() + b"\0")
    content = f"sha256:{digest.hexdigest()}"
    config = {
        "collection": seen.collection,
        "sources": sorted(source_word(source) for source in set(selection.sources)),
        "min_agreement": selection.min_agreement,
        "validation_fraction": validation_fraction,
    }
    key = json.dumps([STEP_VERSIONS["preferences"], config, content], sort_keys=True)
    input_digest = f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    if (found := store.find_by_input(name, input_digest)) is not None:
        return found, True
    with tempfile.TemporaryDirectory(prefix="plinth-pairs-") as folder:
        _write(Path(folder), lines, sides, content)
        made = store.publish(
            name,
            "corpus",
            Path(folder),
            config={**config, "revision": seen.revision},
            metrics=_figures(seen, pairs, intake),
            input_digest=input_digest,
        )
    return made, False


def _split(pairs: Sequence[JudgedPair], fraction: float) -> dict[str, list[JudgedPair]]:
    """By prompt. One prompt alone is trained on."""
    sizes: dict[bytes, int] = {}
    for pair in pairs:
        key = prompt_key(pair.prompt)
        sizes[key] = sizes.get(key, 0) + _size(pair)
    held = held_out(sizes, fraction)
    sides: dict[str, list[JudgedPair]] = {split: [] for split in SPLITS}
    for pair in pairs:
        sides["validation" if prompt_key(pair.prompt) in held else "train"].append(pair)
    return sides


def _write(
    folder: Path,
    lines: dict[str, list[str]],
    sides: dict[str, list[JudgedPair]],
    content: str,
) -> None:
    for split in SPLITS:
        (folder / split).mkdir()
        text = "".join(f"{line}\n" for line in lines[split])
        (folder / split / "documents-00000.jsonl").write_text(text, encoding="utf-8", newline="\n")
    about = {
        "format": 1,
        "documents": {split: len(lines[split]) for split in SPLITS},
        "bytes": {split: sum(map(_size, sides[split])) for split in SPLITS},
        "duplicates": 0,
        "form": "pairs",
        "digest": content,
    }
    (folder / "corpus.json").write_text(json.dumps(about, indent=1))


def _size(pair: JudgedPair) -> int:
    """UTF-8 bytes of what was written in it."""
    texts = [content for _, content in pair.prompt]
    return sum(len(text.encode()) for text in [*texts, pair.chosen, pair.rejected])


def _figures(seen: Snapshot, pairs: Sequence[JudgedPair], intake: Intake) -> dict[str, Any]:
    alpha = agreement(seen.judgements)
    models = {pair.labels[side] for pair in pairs for side in ("chosen_model", "rejected_model")}
    return {
        "intake": [intake.to_json()],
        "pairs": len(pairs),
        "tasks": len({pair.task_id for pair in pairs}),
        "judgements": len(seen.judgements),
        "revision": seen.revision,
        "alpha_ordinal": alpha.ordinal if alpha.HasField("ordinal") else None,
        "models": sorted(models - {""}),
    }
