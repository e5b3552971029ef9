"""Which layers attend within a window, as the files of many families say it."""

from __future__ import annotations

from plinth.models.config import ModelConfig
from plinth.models.gguf.file import GgufFile
from plinth.models.hf.file import ConfigFile
from plinth.models.limits import shown
from plinth.models.parts import LayerKind
from plinth.shared.errors import InvalidArgument

WORDS = {"full_attention": False, "sliding_attention": True}


def everywhere(file: ConfigFile, layers: int, default: int = 0) -> tuple[LayerKind, ...]:
    """`sliding_window` holds for all layers. default: where the key is missing."""
    return kinds(file.window("sliding_window", default), [True] * layers)


def from_a_layer_on(file: ConfigFile, layers: int, *, first: int) -> tuple[LayerKind, ...]:
    """`sliding_window`, where `use_sliding_window` says so, of the layers that `layer_types` names,
    or of those from `max_window_layers` on. first: what that is where the file is silent."""
    used = file.flag("use_sliding_window", False)
    window = file.window("sliding_window", 4096)
    begin = file.size("layer_number", "max_window_layers", first)
    slides = slides_of(file, layers) or [number >= begin for number in range(layers)]
    return kinds(window if used else 0, slides)


def but_each(every: int, layers: int) -> list[bool]:
    """All layers have a window but each of that number, counted from 1."""
    return [bool(number % every) for number in range(1, layers + 1)]


def slides_of(file: ConfigFile, layers: int) -> list[bool]:
    """Whether each layer has a window, as `layer_types` says; empty where it does not."""
    return [WORDS[word] for word in file.words("layer_types", layers, list(WORDS)) or ()]


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


def gguf_slides(file: GgufFile, layers: int, every: int) -> list[bool]:
    """Whether each layer of a GGUF file has a window: a list says it, or a number, as which one has
    none. every: that number, where the file has neither."""
    name = "attention.sliding_window_pattern"
    given = file.get(name, object, every)
    number = given if isinstance(given, int) and not isinstance(given, bool) else 0
    slides = but_each(number, layers) if number > 0 else given
    right = isinstance(slides, list) and len(slides) == layers
    if not right or not all(isinstance(one, bool) for one in slides):
        raise InvalidArgument(
            f"{file.where}: {file.full(name)} is {shown(given)}, must be a positive number or a "
            f"list of {layers} of true or false",
            field=file.full(name),
        )
    return list(slides)
