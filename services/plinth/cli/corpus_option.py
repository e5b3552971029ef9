"""`plinth run FILE --corpus DIR`: a pipeline on text of one's own, as overrides of its settings.

All steps follow: the text is read by one of them, what another asked about Python is then made of
that text, and what is published or served is called by the folder's name. So `--corpus ~/vim` on
the quickstart makes and serves `quickstart-vim`, and moves nothing that is called `quickstart`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from plinth.shared.corpus_folder import CorpusFolder, kind_of
from plinth.shared.errors import InvalidArgument
from plinth.shared.messages import PAGE

# What a step that asks about Python makes of another text.
_PASSAGES = {"stdlib-instruct": "chats", "stdlib-preferences": "pairs"}
_OTHER_SOURCES = ("corpus", "samples", "prompts")  # of a data step that reads no text
_FOLDER_CHARS = 16  # of its name
_NAME_CHARS = 40  # of a pipeline's name, an output's, a served one's


def corpus_overrides(
    pipeline: Mapping[str, Any], corpus: Path, given: Mapping[str, str]
) -> dict[str, str]:
    """What makes a pipeline read the folder: in its step `corpus`, or its only one that reads
    text. `given` is what was said by --set, which stands; a name there is taken for the folder's.
    InvalidArgument when it is not clear which step that is, or the folder is none for it."""
    folder = corpus.expanduser().resolve()
    if not folder.is_dir():
        raise InvalidArgument(f"--corpus {corpus}: there is no such folder", field="corpus")
    steps = {name: mapping(fields) for name, fields in mapping(pipeline.get("steps")).items()}
    reads = [
        name
        for name, fields in steps.items()
        if fields.get("kind") == "data" and not any(map(fields.get, _OTHER_SOURCES))
    ]
    forms = {name: _PASSAGES.get(str(steps[name].get("builtin"))) for name in reads}
    name = _reader(forms, folder)
    if forms[name] is not None:
        _check_rows(folder, name, str(forms[name]))
    step = f"steps.{name}"
    overrides = {f"{step}.corpus_dir": yaml.safe_dump(str(folder)), f"{step}.builtin": ""}
    for other, form in forms.items():
        if f"steps.{other}.corpus_dir" in given:  # rows of one's own
            overrides[f"steps.{other}.builtin"] = ""
        elif other != name and form and forms[name] is None:
            taken = ("builtin", "validation_fraction", "max_bytes")
            overrides |= dict.fromkeys((f"steps.{other}.{field}" for field in taken), "")
            overrides |= {f"steps.{other}.corpus": f"${name}", f"steps.{other}.passages": form}
    return overrides | _names(str(pipeline.get("name")), steps, folder, given) | dict(given)


def _reader(forms: Mapping[str, str | None], folder: Path) -> str:
    """Of the data steps that read no other step's output, with what they are made of (None: text),
    the one that the folder is for."""
    texts = [name for name, form in forms.items() if form is None] or list(forms)
    if "corpus" in forms:
        return "corpus"
    if not texts:
        raise InvalidArgument(
            "--corpus: no step of this pipeline reads a folder (a data step with corpus_dir or "
            "builtin does); ops/pipelines/quickstart.yaml is one that does",
            field="corpus",
        )
    if len(texts) > 1:
        raise InvalidArgument(
            "--corpus: the pipeline has no data step called `corpus`; say which one with "
            f"--set steps.NAME.corpus_dir={folder} --set steps.NAME.builtin= "
            f"(there is: {', '.join(texts)})",
            field="corpus",
        )
    return texts[0]


def _check_rows(folder: Path, step: str, form: str) -> None:
    """A step that is made of chats or pairs takes rows of them, and no text."""
    files = CorpusFolder(folder).files
    others = [path for path in files if kind_of(path) != ".jsonl"]
    if others or not files:
        what = f"{others[0].name} is text" if others else "the folder has no .jsonl file"
        raise InvalidArgument(
            f"--corpus {folder}: the step {step} is made of {form}, and {what}; give a folder of "
            f".jsonl files with {form} ({PAGE} has their shapes), or a pipeline that reads text, "
            "such as ops/pipelines/quickstart.yaml",
            field="corpus",
        )


def _names(
    name: str, steps: Mapping[str, Mapping[str, Any]], folder: Path, given: Mapping[str, str]
) -> dict[str, str]:
    """The pipeline's own name, and those that its steps publish and serve by."""
    plain = re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-")[:_FOLDER_CHARS].rstrip("-")
    plain = plain or hashlib.sha256(folder.name.encode()).hexdigest()[:8]
    own = given.get("name") or f"{name}-{plain}"

    def renamed(old: str) -> str:
        after = old.removeprefix(name)
        same = old.startswith(name) and after[:1] in ("", "-")
        return (own + after if same else f"{old}-{plain}")[:_NAME_CHARS]

    named = {"name": own[:_NAME_CHARS]}
    for step, fields in steps.items():
        for field in ("output", *(["name"] if fields.get("kind") == "serve" else [])):
            if old := fields.get(field):
                named[f"steps.{step}.{field}"] = renamed(str(old))
    return named


def mapping(value: object) -> dict[str, Any]:
    """What is none is empty: whoever reads the pipeline says what is wrong with it."""
    return value if isinstance(value, dict) else {}
