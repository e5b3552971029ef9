"""Corpora that need no download, made from Python's own standard library on the machine.

`stdlib`: its sources, and the language's documentation topics that it carries.
`stdlib-instruct`: a question about a function or class with its signature → its docstring.
`stdlib-preferences`: the same, and the docstring preferred to what a rule made worse of it.
They come in an order fixed by a hash of each file's path, so that a capped corpus is a fair
sample; the order and content depend on nothing but the Python version.
"""

from __future__ import annotations

import ast
import inspect
import random
import sysconfig
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path

from plinth.shared.errors import InvalidArgument
from plinth.trainer.data.documents import Document, cut

_SKIP = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "lib-dynload",
    "__phello__",
}
_TOPICS = Path("pydoc_data/topics.py")
_SIGNATURE_CHARACTERS = 160
_ANSWER_CHARACTERS = (24, 480)

_QUESTIONS = (
    "What does `{name}{signature}` do?",
    "Explain the {kind} `{name}{signature}` of the module {module}.",
    "In Python's {module}, what is `{name}{signature}` for?",
    "Describe `{name}{signature}`.",
)


def stdlib() -> Iterator[Document]:
    """Sources and documentation topics."""
    root = _root()
    for path in _sources(root):
        if path.relative_to(root) == _TOPICS:
            yield from (Document(text=text) for text in _topics(path))
        else:
            yield from cut(iter([path.read_text(encoding="utf-8")]))


def stdlib_instruct() -> Iterator[Document]:
    """One exchange for each public function and class with a docstring of a good length."""
    root = _root()
    for path in _sources(root):
        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        yield from _exchanges(ast.parse(path.read_text(encoding="utf-8")), module, "")


def stdlib_preferences() -> Iterator[Document]:
    """Each docstring against one that was cut off, scrambled, or belongs to something else."""
    before = ""
    for exchange in stdlib_instruct():
        answer = exchange.messages[-1][1]
        rule, worse = _made_worse(answer, before)
        before = answer
        worse = worse.strip()
        if worse and worse != answer:
            yield Document(messages=exchange.messages, rejected=worse, source=f"rule:{rule}")


def _made_worse(answer: str, foreign: str) -> tuple[str, str]:
    """(rule, worse answer), both decided by the answer alone."""
    chance = random.Random(blake2b(answer.encode(), digest_size=8).digest())
    rule = chance.choice(("truncated", "scrambled", "foreign"))
    if rule == "foreign":
        return rule, foreign
    words = answer.split(" ")
    if rule == "truncated":
        return rule, " ".join(words[: max(1, len(words) // 3)])
    chance.shuffle(words)
    return rule, " ".join(words)


BUILTIN: dict[str, Callable[[], Iterator[Document]]] = {
    "stdlib": stdlib,
    "stdlib-instruct": stdlib_instruct,
    "stdlib-preferences": stdlib_preferences,
}


def _root() -> Path:
    root = Path(sysconfig.get_paths()["stdlib"])
    if not (root / "os.py").is_file():
        raise InvalidArgument(
            f"builtin corpus: {root} holds no standard library sources; give corpus_dir instead",
            field="builtin",
        )
    return root


def _sources(root: Path) -> list[Path]:
    """Importable modules that decode as UTF-8, by the hash of their path."""
    found = [
        path
        for path in root.rglob("*.py")
        if not _SKIP & set(path.relative_to(root).parts[:-1]) and _usable(path)
    ]
    return sorted(found, key=lambda p: blake2b(str(p.relative_to(root)).encode()).digest())


def _usable(path: Path) -> bool:
    """Modules in another encoding exist (and say so in their first line); they are left out."""
    raw = path.read_bytes()
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return b"\0" not in raw


def _topics(path: Path) -> Iterator[str]:
    """The values of the one dictionary literal in `pydoc_data/topics.py`."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for _, text in sorted(ast.literal_eval(node.value).items()):
                yield inspect.cleandoc(str(text))


def _exchanges(tree: ast.AST, module: str, prefix: str) -> Iterator[Document]:
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        name = f"{prefix}{node.name}"
        if not node.name.startswith("_"):
            yield from _exchange(node, module, name)
        if isinstance(node, ast.ClassDef):
            yield from _exchanges(node, module, f"{name}.")


def _exchange(
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, module: str, name: str
) -> Iterator[Document]:
    answer = (ast.get_docstring(node) or "").strip()
    signature = (
        f"({', '.join(ast.unparse(base) for base in node.bases)})"
        if isinstance(node, ast.ClassDef)
        else f"({ast.unparse(node.args)})"
    )
    low, high = _ANSWER_CHARACTERS
    if not low <= len(answer) <= high or len(signature) > _SIGNATURE_CHARACTERS:
        return
    choice = blake2b(f"{module}.{name}".encode(), digest_size=1).digest()[0]
    question = _QUESTIONS[choice % len(_QUESTIONS)].format(
        name=name,
        signature=signature,
        module=module,
        kind="class" if isinstance(node, ast.ClassDef) else "function",
    )
    yield Document(messages=(("user", question), ("assistant", answer)))
