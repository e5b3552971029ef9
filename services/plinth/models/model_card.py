"""README.md of an exported folder: a model card as the hub's, with its licence and its lineage.

Format: https://huggingface.co/docs/hub/model-cards, a header of YAML and text for people.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from plinth.models.adapters.base import read_stop_ids
from plinth.models.hf.folder import read_json
from plinth.models.sources import HUB_PREFIX
from plinth.shared.store import ArtifactRecord

CARD = "README.md"


def write_card(folder: Path, record: ArtifactRecord, base: ArtifactRecord | None = None) -> None:
    """Beside the model `record`, unless it brought one of its own. base: an adapter's."""
    if (folder / CARD).exists():
        return
    alone = (folder / "adapter_config.json").is_file()
    header: dict[str, Any] = {"library_name": "peft" if alone else "transformers"}
    if licence := record.manifest.get("license"):
        header["license"] = licence
    source = str((base or record).manifest["extra"].get("source") or "")
    if source.startswith(HUB_PREFIX):
        header["base_model"] = source.removeprefix(HUB_PREFIX).partition("@")[0]
    how = f"made from {', '.join(record.parents)}" if record.parents else f"imported from {source}"
    lines = [
        "---",
        yaml.safe_dump(header, allow_unicode=True, sort_keys=True).rstrip(),
        "---",
        "",
        f"# {record.ref}",
        "",
        f"Exported from Plinth: the {record.kind} {record.ref} ({record.digest}), {how}.",
    ]
    if base is not None:
        done = "An adapter of" if alone else "An adapter, merged into"
        lines += ["", f"{done} {base.ref} ({base.digest})."]
    if alone:
        lines += ["", *_opening(folder)]
    (folder / CARD).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _opening(folder: Path) -> list[str]:
    """How PEFT opens the adapter there, where that is not said by its files alone."""
    reward = read_json(folder / "adapter_config.json").get("task_type") == "SEQ_CLS"
    if reward:
        return [
            "A reward model: `AutoPeftModelForSequenceClassification.from_pretrained(FOLDER, "
            "num_labels=1)`."
        ]
    if ends := read_stop_ids(folder):
        return [f"Its answers end by the ids {ends}: `generate(..., eos_token_id={ends})`."]
    return []
