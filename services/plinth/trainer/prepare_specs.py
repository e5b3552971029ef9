"""Specifications of data that is to be prepared: what a request may say."""

from __future__ import annotations

from plinth.shared.api.words import said
from plinth.shared.errors import InvalidArgument
from plinth.trainer.data.builtin import BUILTIN
from plinth.trainer.data.selected import MAX_GAP
from plinth.v1 import jobs_pb2 as pb

DEFAULT_VALIDATION_FRACTION = 0.02
SOURCES = tuple(f.name for f in pb.PrepareSpec.DESCRIPTOR.oneofs_by_name["source"].fields)


def check_prepare(spec: pb.PrepareSpec) -> None:
    """Raise InvalidArgument for whatever can be told from the request alone."""
    source = spec.WhichOneof("source")
    if source is None or not getattr(spec, source):
        raise InvalidArgument(
            f"give one of {', '.join(SOURCES[:-1])} or {SOURCES[-1]}, not {source or 'none'}"
            f"{', which is empty' if source else ''}",
            field="spec.prepare",
        )
    selection = said(spec, "selection")
    if said(spec, "ties") == "likely" and selection not in ("", "extremes"):
        raise InvalidArgument(
            f"ties 'likely' is for selection 'extremes', not for {selection!r}",
            field="spec.prepare.ties",
        )
    if (spec.selection or spec.margin or spec.ties) and not spec.samples:
        raise InvalidArgument(
            "selection, margin and ties are for samples; name an artifact of kind 'samples'",
            field="spec.prepare.samples",
        )
    if not 0 <= spec.margin <= MAX_GAP:
        raise InvalidArgument(
            f"margin is {spec.margin}, must be 0 to {MAX_GAP:g}", field="spec.prepare.margin"
        )
    if spec.builtin and spec.builtin not in BUILTIN:
        raise InvalidArgument(
            f"builtin corpus {spec.builtin!r} is unknown; there is: {', '.join(BUILTIN)}",
            field="spec.prepare.builtin",
        )
    _check_passages(spec)
    if (spec.corpus or spec.prompts) and not (spec.tokenizer or spec.passages):
        raise InvalidArgument(
            "a corpus or prompts artifact needs a tokenizer to make a dataset of it",
            field="spec.prepare.tokenizer",
        )
    if not 0 <= spec.max_left_out <= 1:
        raise InvalidArgument(
            f"max_left_out is {spec.max_left_out}, must be 0 to 1",
            field="spec.prepare.max_left_out",
        )
    held, cut = spec.HasField("validation_fraction"), bool(spec.max_bytes)
    for name, there in (("validation_fraction", held), ("max_bytes", cut)):
        if there and (spec.corpus or spec.prompts):
            raise InvalidArgument(
                f"{name} has no effect on a corpus or prompts, which were split and cut when they "
                "were made: give it there",
                field=f"spec.prepare.{name}",
            )
    fraction = validation_fraction(spec)
    if not 0 <= fraction <= 0.5:
        raise InvalidArgument(
            f"validation_fraction is {fraction}, must be 0 to 0.5",
            field="spec.prepare.validation_fraction",
        )


def validation_fraction(spec: pb.PrepareSpec) -> float:
    if spec.HasField("validation_fraction"):
        return spec.validation_fraction
    return DEFAULT_VALIDATION_FRACTION


def _check_passages(spec: pb.PrepareSpec) -> None:
    if spec.passages and (not spec.corpus or spec.tokenizer):
        raise InvalidArgument(
            "passages are made of a corpus artifact, and without a tokenizer: prepare what they "
            "make with one",
            field="spec.prepare.passages",
        )
