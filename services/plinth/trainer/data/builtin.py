"""Corpora that need no download, made from Python's own standard library on the machine.

`stdlib`: its sources, and the language's documentation topics that it carries.
`stdlib-instruct`: a question about a function or class with its signature → the first paragraph of
its docstring.
`stdlib-preferences`: the same, and that paragraph preferred to what a rule made worse of it.
They come in an order fixed by a hash of each file's path, so that a capped corpus is a fair
sample; the order and content depend on nothing but the Python version. A module is held out as a
whole, and of all three at the same fraction: what is asked about it then was in no training.
"""

from __future__ import annotations

import ast
import inspect
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from plinth.shared.errors import InvalidArgument
from plinth.trainer.data.documents import Document, cut
from plinth.trainer.data.worse_answers import made_worse

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
            module = _module(root, path)
            for document in cut(iter([path.read_text(encoding="utf-8")])):
                yield replace(document, split_group=module)


def stdlib_instruct() -> Iterator[Document]:
    """One exchange for each public function and class with a docstring of a good length, of those
    that are asked about in the same words (`main()`) the first."""
    root, asked = _root(), set[str]()
    for path in _sources(root):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for exchange in _exchanges(tree, _module(root, path), ""):
            question = exchange.messages[0][1].casefold()
            if question not in asked:
                asked.add(question)
                yield exchange


def stdlib_preferences() -> Iterator[Document]:
    """Each answer against one that was cut off, scrambled, repeated, misworded, or belongs to
    something else of the same module, so that nothing is learned of what is held out."""
    module = before = ""
    for exchange in stdlib_instruct():
        answer = exchange.messages[-1][1]
        rule, worse = made_worse(answer, before if exchange.split_group == module else "")
        module, before = exchange.split_group, answer
        if worse and worse != answer:
            yield replace(exchange, rejected=worse, source=f"rule:{rule}")


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


def _module(root: Path, path: Path) -> str:
    """A file's dotted name."""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


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
    # The first paragraph (PEP 257's summary and what belongs to it), unwrapped: prose throughout.
    answer = " ".join((ast.get_docstring(node) or "").strip().split("\n\n")[0].split())
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
    yield Document(messages=(("user", question), ("assistant", answer)), split_group=module)
