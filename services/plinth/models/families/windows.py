"""Which layers attend within a window, as the `config.json` of many families says it."""

from __future__ import annotations

from plinth.models.config import ModelConfig
from plinth.models.hf_file import ConfigFile
from plinth.models.parts import LayerKind

WORDS = {"full_attention": False, "sliding_attention": True}


def everywhere(file: ConfigFile, layers: int, default: int = 0) -> tuple[LayerKind, ...]:
    """`sliding_window` holds for all layers. default: where the key is missing."""
    window = default if "sliding_window" not in file.content else file.window("sliding_window")
    return kinds(window, [True] * layers)


def from_a_layer_on(file: ConfigFile, layers: int, *, first: int) -> tuple[LayerKind, ...]:
    """`sliding_window`, where `use_sliding_window` says so, of the layers that `layer_types` names,
    or of those from `max_window_layers` on. first: what that is where the file is silent."""
    used = file.flag("use_sliding_window", False)
    window = file.window("sliding_window") or (4096 if "sliding_window" not in file.content else 0)
    begin = file.size("layer_number", "max_window_layers", first)
    words = file.words("layer_types", layers, list(WORDS))
    slides = [WORDS[word] for word in words] if words else [n >= begin for n in range(layers)]
    return kinds(window if used else 0, slides)


def kinds(window: int, slides: list[bool]) -> tuple[LayerKind, ...]:
    """Empty where no layer has one: all are alike."""
    if not window or not any(slides):
        return ()
    return tuple(LayerKind(window if one else 0) for one in slides)


def window_of(config: ModelConfig) -> int:
    """The one window of a config; 0 without."""
    return max((kind.window for kind in config.kinds), default=0)


def words_of(config: ModelConfig) -> list[str]:
    """`layer_types`."""
    by_kind = {windowed: word for word, windowed in WORDS.items()}
    return [by_kind[bool(kind.window)] for kind in config.kinds]
