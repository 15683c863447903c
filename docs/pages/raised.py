"""Find every problem code that app/ and workers/ raise, with its text.

A code is a string that reaches a parameter or a field named `code`; its text is what reaches the one beside it. Only
the syntax is read: nothing is imported, so neither TensorRT nor a GPU is needed.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from docs.pages.wording import Module, text

ROOT: Final = Path(__file__).parents[2]
JOB: Final = "job"
COMMAND: Final = "command"
WAITING: Final = "waiting"
PLACES: Final[Mapping[str, str]] = {
    "Rejected": "422",  # app/definitions/sandbox.py raises the child's answer as Invalid
    "CheckpointError": "422",  # app/weights/ raises it as Invalid
    "CannotStart": COMMAND,
    "Waiting": WAITING,
}
IN_JOBS: Final = ("bad_signature", "unknown_work")  # of what only workers do with modules of app/
STARTING: Final = ("bad_signing_key", "bad_store_url", "no_backend")  # found before a process takes any request
TEXT: Final = ("detail", "what")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Taker:
    """A class or function that is given a code.

    `code`, `text` and `remedy` are positions of arguments; `default` is the code, and `says` the text, if none is
    given. `place` is the HTTP status it stands for, "job", "command" or "waiting"; None if its first argument is the
    status.
    """

    place: str | None
    code: int | None = None
    text: int | None = None
    remedy: int | None = None
    default: str = ""
    says: str = ""


def raised(root: Path = ROOT) -> Iterator[tuple[str, str, str]]:
    """Yield (code, place, text) of everything in app/ and workers/ that may become a problem or a job's error."""
    paths = (path for package in ("app", "workers") for path in sorted((root / package).rglob("*.py")))
    parsed = {module.path: module for module in (_parsed(path, root) for path in paths)}
    modules = [_with_imported(module, parsed) for module in parsed.values()]
    shared = {name: value for module in modules for name, value in module.constants.items()}
    takers = _takers(modules)
    for module in modules:
        for scope, node in _scoped(module.tree):
            if isinstance(node, ast.Call) and (taker := takers.get(_called(node))):
                for code in _codes(_argument(node, taker.code, "code"), shared, takers) or _default(node, taker):
                    yield code, _place(code, module, taker, node), _explained(node, taker, scope, module)
            elif isinstance(node, ast.Dict) and (given := _keys(node)).keys() == {"code", "detail", "errors"}:
                for code in _codes(given["code"], shared, takers):  # the answer of the child that makes definitions
                    yield code, PLACES["Rejected"], text(given["detail"], scope, module)


def _parsed(path: Path, root: Path) -> Module:
    tree = ast.parse(path.read_text())
    constants = {
        name.id: str(node.value.value)
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant)
        for name in _targets(node)
        if isinstance(name, ast.Name) and name.id.lstrip("_").isupper()
    }
    return Module(str(path.relative_to(root)), tree, constants)


def _with_imported(module: Module, parsed: Mapping[str, Module]) -> Module:
    """Add the constants that a module imports from others of this project."""
    imported: dict[str, str] = {}
    for node in module.tree.body:
        if isinstance(node, ast.ImportFrom) and (source := parsed.get(f"{(node.module or '').replace('.', '/')}.py")):
            names = {alias.name for alias in node.names} & source.constants.keys()
            imported |= {name: source.constants[name] for name in names}
    return replace(module, constants={**imported, **module.constants})


def _place(code: str, module: Module, taker: Taker, call: ast.Call) -> str:
    """Return where a code is answered: what a worker raises ends its job, whatever its status elsewhere."""
    if code in STARTING:
        return COMMAND
    if code in IN_JOBS:
        return JOB
    if taker.place is None:
        return str(call.args[0].value) if isinstance(call.args[0], ast.Constant) else "500"
    return JOB if module.path.startswith("workers/") and taker.place != COMMAND else taker.place


# What is given a code


def _takers(modules: Sequence[Module]) -> dict[str, Taker]:
    """Return every class and function that takes a code, by its name."""
    takers: dict[str, Taker] = {}
    nodes = [(module, node) for module in modules for node in ast.walk(module.tree)]
    classes = [node for _module, node in nodes if isinstance(node, ast.ClassDef)]
    for defined in classes * 2:  # twice: a subclass may stand before its base
        bases = [takers[base.id] for base in defined.bases if isinstance(base, ast.Name) and base.id in takers]
        if taker := _class(defined, bases[0] if bases else None):
            takers[defined.name] = taker
    for module, node in nodes:
        if isinstance(node, Function) and node.name != "__init__" and "code" in (names := _names(node.args)):
            returned = takers.get(getattr(node.returns, "id", ""), Taker(JOB))
            place = None if names[0] == "status" else returned.place
            says = next((text(call.args[1], node, module) for call in _handing_on(node)), "")
            takers[node.name] = replace(_taker(names, place or JOB), place=place, says=says)
    return takers


def _class(node: ast.ClassDef, base: Taker | None) -> Taker | None:
    """Return how a class takes a code: by its constructor, its fields, its value for all, or as its base does."""
    values = _class_values(node)
    place = values.get("status", PLACES.get(node.name, base.place if base else JOB))
    init = next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)
    fields = [
        part.target.id for part in node.body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
    ]
    names = _names(init.args) if init else fields
    taker = base
    if "code" in names or (base is None and "code" in values):
        taker = _taker(names, place or JOB)
    return taker and replace(taker, place=place, default=values.get("code", taker.default))


def _taker(names: Sequence[str], place: str) -> Taker:
    return Taker(place, _position(names, "code"), _position(names, *TEXT), _position(names, "remedy"))


def _position(names: Sequence[str], *wanted: str) -> int | None:
    return next((names.index(name) for name in wanted if name in names), None)


def _names(arguments: ast.arguments) -> list[str]:
    """Return the names of all arguments, those by position first, without `self`."""
    return [argument.arg for argument in (*arguments.args, *arguments.kwonlyargs) if argument.arg != "self"]


def _class_values(node: ast.ClassDef) -> dict[str, str]:
    """Return what a class body says of `code` and `status`, one name or several at once."""
    values: dict[str, str] = {}
    for part in node.body:
        if isinstance(part, ast.Assign | ast.AnnAssign):
            given = part.value.elts if isinstance(part.value, ast.Tuple) else [part.value]
            for name, value in zip(_targets(part), given, strict=False):
                if getattr(name, "id", "") in {"code", "status"} and isinstance(value, ast.Constant):
                    values[name.id] = str(value.value)  # type: ignore[attr-defined]  # it has the id asked for
    return values


def _targets(node: ast.Assign | ast.AnnAssign) -> list[ast.expr]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [name for target in targets for name in (target.elts if isinstance(target, ast.Tuple) else [target])]


def _handing_on(function: Function) -> Iterator[ast.Call]:
    """Yield the calls of a function that hand on its own `code` first, with a text behind it."""
    for call in ast.walk(function):
        if isinstance(call, ast.Call) and len(call.args) > 1 and getattr(call.args[0], "id", "") == "code":
            yield call


# What it is given


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _argument(call: ast.Call, position: int | None, *names: str) -> ast.expr | None:
    by_name = next((keyword.value for keyword in call.keywords if keyword.arg in names), None)
    if by_name is None and position is not None and position < len(call.args):
        return call.args[position]
    return by_name


def _codes(given: ast.expr | None, constants: Mapping[str, str], takers: Mapping[str, Taker]) -> list[str]:
    """Return the codes that an argument may be: none if it hands on one that stands elsewhere."""
    match given:
        case ast.Constant(value=str() as code):
            return [code]
        case ast.Name(id=name) if name in constants:
            return [constants[name]]
        case ast.Attribute(value=ast.Name(id=name), attr="code") if name in takers:
            return [takers[name].default]
        case ast.IfExp(body=body, orelse=orelse):
            return _codes(body, constants, takers) + _codes(orelse, constants, takers)
    return []


def _explained(call: ast.Call, taker: Taker, scope: ast.AST, module: Module) -> str:
    """Return the text of a call, or what the called function says by itself."""
    given = text(_argument(call, taker.text, *TEXT), scope, module) or taker.says
    remedy = text(_argument(call, taker.remedy, "remedy"), scope, module)
    return f"{given}: «reason». {remedy}" if remedy else given


def _default(call: ast.Call, taker: Taker) -> list[str]:
    return [taker.default] if taker.default and _argument(call, taker.code, "code") is None else []


def _keys(node: ast.Dict) -> dict[str, ast.expr]:
    pairs = zip(node.keys, node.values, strict=True)
    return {str(key.value): value for key, value in pairs if isinstance(key, ast.Constant)}


def _scoped(tree: ast.Module) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Yield every node behind the innermost function that it stands in."""
    waiting: list[tuple[ast.AST, ast.AST]] = [(tree, tree)]
    while waiting:
        scope, node = waiting.pop()
        yield scope, node
        inner = node if isinstance(node, Function) else scope
        waiting.extend((inner, child) for child in ast.iter_child_nodes(node))
