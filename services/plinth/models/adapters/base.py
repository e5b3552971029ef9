"""Which model an adapter belongs to: told by a digest in files of ours, else by a name.

    base.json      beside an adapter of ours: weights_digest, of its base in float32;
                   stop_token_ids, what ends its answers, the end of a turn first

Shapes alone do not tell one model from another, and an adapter on the wrong one computes nonsense
without an error. PEFT's files have no digest. They name the base as their trainer opened it: a
hub's name, or a folder, which may be at hand (then its weights are compared) or on another machine
(then its last part is). PEFT, vLLM and llama.cpp put an adapter on whatever base they are given,
so one may insist here too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plinth.models.adapters.lora import base_tensors
from plinth.models.decoder import Decoder
from plinth.models.hf.folder import read_json
from plinth.models.limits import shown
from plinth.models.sources import HUB_PREFIX, name_of
from plinth.models.weights import weights_digest, write_json
from plinth.shared.errors import InvalidArgument, PlinthError

if TYPE_CHECKING:
    from plinth.shared.store import ArtifactRecord

FILE = "base.json"
INSIST = "--allow-other-base"
_VERSION = re.compile(r"[a-z0-9._-]+@[0-9]+")  # an artifact's


@dataclass(frozen=True)
class NamedBase:
    """What an adapter's files say of its base; empty where they say nothing.

    name: a hub's, a folder's or an artifact's; revision: the hub's; digest: of the weights in
    float32, adapters left out; body: of those without the output map, which a reward model has not.
    """

    name: str = ""
    revision: str = ""
    digest: str = ""
    body: bool = False


def write_base(folder: Path, decoder: Decoder, stop_ids: Sequence[int]) -> None:
    """Say in an adapter's folder what its base's weights are, and by which ids its answers end."""
    ends = list(dict.fromkeys([*stop_ids, *decoder.config.eos_ids]))
    write_json(folder / FILE, {"weights_digest": digest_of(decoder), "stop_token_ids": ends})


def read_base(folder: Path, config: Mapping[str, Any], *, reward: bool = False) -> NamedBase:
    """config: the adapter's `adapter_config.json`; reward: it has a reward model's head."""
    return NamedBase(
        name=str(config.get("base_model_name_or_path") or ""),
        revision=str(config.get("revision") or ""),
        digest=str(_own(folder).get("weights_digest") or ""),
        body=reward,
    )


def read_stop_ids(folder: Path) -> list[int]:
    """What the adapter in `folder` has learned to end its answers by, the end of a turn first;
    empty for PEFT's own and for those that were saved before this was.

    Raises InvalidArgument where the file says something else than ids there.
    """
    said = _own(folder).get("stop_token_ids", [])
    if not isinstance(said, list) or not all(type(one) is int and one >= 0 for one in said):
        raise InvalidArgument(
            f"{folder / FILE}: stop_token_ids is {shown(said)}, must be a list of token ids",
            field="stop_token_ids",
        )
    return said


def _own(folder: Path) -> Mapping[str, Any]:
    return read_json(folder / FILE) if (folder / FILE).is_file() else {}


def digest_of(decoder: Decoder, *, body: bool = False) -> str:
    """Of the base's weights alone, in the type in which they were loaded. body: without the output
    map, as a reward model's always is: of one base both give the same."""
    tensors: Mapping[str, Tensor] = base_tensors(decoder)
    left_out = {"score.weight", "lm_head.weight"} if body else {"score.weight"}
    return weights_digest({name: t for name, t in tensors.items() if name not in left_out})


def check_base(
    named: NamedBase,
    record: ArtifactRecord,
    decoder: Decoder,
    where: str,
    *,
    insist: bool | None = False,
) -> list[str]:
    """Whether `decoder`, which is the artifact `record`, is the base that is meant; what there is
    to tell: nothing, unless the files do not say, or one insists. insist None: the base is the one
    of the adapter's lineage, so nobody chose it.

    Raises InvalidArgument (OTHER_BASE) with both names where it is another model.
    """
    theirs = named.digest or _digest_at(named.name)
    if not theirs and not named.name:
        return ["the adapter does not say which model it was trained on"]
    meant, here = repr(named.name or "another model"), record.ref
    if source := record.manifest["extra"].get("source"):
        here += f" (imported from {source})"
    if theirs:
        # A folder's digest is of all its weights, whatever was trained on them.
        if theirs == (mine := digest_of(decoder, body=named.body and bool(named.digest))):
            return []
        meant, here = f"{meant}, weights {theirs[:19]}…", f"{here}, weights {mine[:19]}…"
    elif _same_name(named, record):
        return []
    if insist:
        return [f"merged by {INSIST}: the adapter was trained on {meant}, not on {here}"]
    advice = (
        f"{record.ref} is its base by its lineage, so one of them was changed since: train it "
        "again; or, if you mean these two, export it --with-base and import that folder with "
        f"--base {record.ref} {INSIST}"
        if insist is None
        else "Equal shapes do not make it the same model: name its own base, or say "
        f"{INSIST} if {record.ref} is what you mean"
    )
    raise InvalidArgument(
        f"{where}: was trained on {meant}, and not on {here}. {advice}",
        reason="OTHER_BASE",
        field="base",
    )


def _digest_at(name: str) -> str:
    """The digest of the model in the folder that is called so here, in float32; empty without."""
    folder = Path(name).expanduser()
    if not name or not (folder / "config.json").is_file():
        return ""
    try:
        return weights_digest(folder, dtype=torch.float32)
    except PlinthError:  # no decoder of ours: then its name is all that there is
        return ""


def _same_name(named: NamedBase, record: ArtifactRecord) -> bool:
    """A hub's names are compared whole, with their commits where both are known; else last parts,
    since a folder may have been moved and a hub's model may have been downloaded."""
    extra = record.manifest["extra"]
    source = str(extra.get("source") or "")
    if _VERSION.fullmatch(named.name) or named.name == record.name:
        return named.name in (record.ref, record.name)
    if source.startswith(HUB_PREFIX) and named.name.count("/") == 1 and named.name[0] not in "./~":
        commit = str(extra.get("revision") or "")
        apart = len(named.revision) == 40 and commit and named.revision != commit
        hub = source.removeprefix(HUB_PREFIX).partition("@")[0]
        return named.name.lower() == hub.lower() and not apart
    return name_of(named.name) in {name_of(source), record.name}
