"""Names and digests of sources."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from plinth.models.sources import locate, name_of, source_digest
from plinth.shared.errors import InvalidArgument


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf:HuggingFaceTB/SmolLM2_135M", "smollm2_135m"),
        ("/models/My Model.Q4_1.gguf", "my-model.q4_1"),
        ("hf:a/..", "model"),
        ("hf:org/tiny@main", "tiny"),
    ],
)
def test_names_of_sources_are_names_of_artifacts(source: str, name: str) -> None:
    assert name_of(source) == name


def test_a_checkpoint_that_was_imported_before_is_found_by_its_content(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    digest = source_digest(str(tmp_path / "a"))
    assert source_digest(str(tmp_path / "b")) == digest
    (tmp_path / "b" / "config.json").write_text("{ }")
    assert source_digest(str(tmp_path / "b")) != digest


@pytest.mark.parametrize(
    "file", ["model-00001-of-00006.safetensors", "config.json", "pytorch_model.bin"]
)
def test_one_file_of_a_folder_names_the_folder(file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(InvalidArgument, match="one file of a model's folder") as caught:
        locate(str(tmp_path / file))
    assert str(tmp_path) in caught.value.message.rpartition(": ")[2]
    assert locate(str(tmp_path)) == ("folder", tmp_path)


def test_a_source_is_known_without_torch() -> None:
    code = "import sys, plinth.cluster.serve_model; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
