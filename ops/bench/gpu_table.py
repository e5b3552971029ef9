"""The JSON lines of `gpu.sh` as Markdown, ready for `docs/benchmarks.md`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Line = dict[str, Any]


def markdown(lines: Sequence[Line]) -> str:
    """The machine, the results beside their peers, and how each step ended."""
    parts = [_machine(lines)]
    if rows := [*_rates(lines), *_policies(lines)]:
        parts.append(
            _table(("what", "model", "Plinth", "beside", "its figure", "Plinth / beside"), rows)
        )
    ends = [
        (line["step"], line["status"], f"{line['seconds']:.0f} s", line["note"])
        for line in lines
        if "status" in line
    ]
    parts.append(_table(("step", "", "took", "note"), ends))
    return "\n\n".join(parts) + "\n"


def _machine(lines: Iterable[Line]) -> str:
    found: Line = next((line for line in lines if "machine" in line), {})
    if not found:
        return "Device: unknown (the step `machine` failed)."
    names = ("driver", "cuda", "torch", "triton", "transformers", "python", "cores", "commit")
    said = [f"{name} {found[name]}" for name in names if found.get(name)]
    return f"Device: {found['machine']} (`{found['device']}`); {', '.join(said)}."


def _rates(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """Tokens per second: a row for each rival, beside Plinth's line of the same work."""
    ours = {_key(line): line for line in lines if line.get("who") == "plinth"}
    return [
        (
            _what(line),
            line["model"],
            f"{ours[_key(line)]['tokens_per_second']:,.0f} tokens/s",
            line["who"],
            f"{line['tokens_per_second']:,.0f} tokens/s",
            f"{line.get('ratio_paired', line['ratio']):.2f}",
        )
        for line in lines
        if line.get("who") not in (None, "plinth") and _key(line) in ours
    ]


def _key(line: Line) -> tuple[Any, ...]:
    return line.get("bench"), line.get("work"), line.get("model")


def _what(line: Line) -> str:
    if line["bench"] == "train":
        return f"training step, {line['precision']}, {line['batch']} × {line['length']} tokens"
    streams, dtype = line["streams"], line["dtype"]
    if line["work"] == "prefill":
        return f"prefill, {dtype}, {line['prompt_tokens']:,} tokens"
    return f"decode, {dtype}, {streams} stream{'s' if streams > 1 else ''}"


def _policies(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """A policy's updates: sampling beside the hand-written loop; the whole update has no rival."""
    rows: list[tuple[str, ...]] = []
    for line in lines:
        if line.get("bench") != "align" or "update_s" not in line:
            continue
        name, ours, loop = line["algo"].upper(), line["generation_tokens_s"], line["loop_tokens_s"]
        rows += [
            (
                f"{name}, sampling, fp32", "10M",
                f"{ours:,.0f} tokens/s", "transformers, by hand", f"{loop:,.0f} tokens/s",
                f"{ours / loop:.2f}",
            ),
            (f"{name}, one update, fp32", "10M", f"{line['update_s']:.3f} s", "–", "–", "–"),
        ]  # fmt: skip
    return rows


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in cells)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
