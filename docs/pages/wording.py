"""Texts as they stand in the code, with «…» for what is filled in when they are made."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass

LISTS = {"len", "list", "sorted", "str", "_listed", "listed"}  # calls that stand for their argument


@dataclass(frozen=True)
class Module:
    """One parsed file; `constants` are the texts and numbers that its names stand for."""

    path: str
    tree: ast.Module
    constants: Mapping[str, str]


def text(given: ast.AST | None, scope: ast.AST, module: Module) -> str:  # noqa: C901, PLR0911 - a table, one line per form
    """Return the text of an expression that stands in `scope`, a function of the module or the module itself.

    Several texts that it may be are separated by "<br>".
    """
    match given:
        case None:
            return ""
        case ast.Constant(value=value):
            return str(value)
        case ast.JoinedStr(values=values):
            return "".join(text(value, scope, module) for value in values)
        case ast.FormattedValue(value=ast.Name(id=name)):
            return _known(name, scope, module) or f"«{name}»"
        case ast.FormattedValue(value=value):
            return f"«{_word(value)}»"
        case ast.BinOp(left=left, right=right):
            return text(left, scope, module) + text(right, scope, module)
        case ast.Call(func=ast.Attribute(value=value, attr="rstrip")):
            return text(value, scope, module)
        case ast.Call(func=ast.Attribute(value=separator, attr="join"), args=[ast.List(elts=parts)]):
            return text(separator, scope, module).join(text(part, scope, module) for part in parts)
        case ast.Call(func=ast.Name(id=name)):
            return _returned(name, module) or f"«{_word(given)}»"
        case ast.Name(id=name):
            return module.constants.get(name) or _assigned(name, scope, module) or f"«{name}»"
    return f"«{_word(given)}»"


def _known(name: str, scope: ast.AST, module: Module) -> str:
    """Return what a placeholder always is: a constant of the module, or one text of the function."""
    assigned = [node.value for node in ast.walk(scope) if isinstance(node, ast.Assign) and _gives(node, name)]
    if len(assigned) == 1 and isinstance(assigned[0], ast.Constant):
        return text(assigned[0], scope, module)
    return module.constants.get(name, "")


def _assigned(name: str, scope: ast.AST, module: Module) -> str:
    nodes = [node for node in ast.walk(scope) if isinstance(node, ast.Assign) and _gives(node, name)]
    return "<br>".join(text(node.value, scope, module) for node in nodes)


def _gives(node: ast.Assign, name: str) -> bool:
    return any(isinstance(target, ast.Name) and target.id == name for target in node.targets)


def _returned(name: str, module: Module) -> str:
    """Return the texts that a function of the module returns."""
    functions = [node for node in module.tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    returns = [(scope, node.value) for scope in functions for node in ast.walk(scope) if isinstance(node, ast.Return)]
    return "<br>".join(
        text(value, scope, module)
        for scope, value in returns
        if isinstance(value, ast.JoinedStr) or (isinstance(value, ast.Constant) and isinstance(value.value, str))
    )


def _word(value: ast.AST) -> str:  # noqa: PLR0911 - a table, one line per form
    """Return the word in the code that is nearest to what a placeholder stands for."""
    match value:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.strip("_")
        case ast.Starred(value=inner) | ast.Subscript(value=inner) | ast.BoolOp(values=[inner, *_]):
            return _word(inner)
        case ast.Call(func=ast.Attribute(attr="join"), args=[inner, *_]):
            return _word(inner)
        case ast.Call(func=ast.Name(id=name), args=[inner, *_]) if name in LISTS:
            return _word(inner)
        case ast.GeneratorExp(elt=inner) | ast.ListComp(elt=inner) | ast.IfExp(body=inner):
            return _word(inner)
        case ast.Call(func=func):
            return _word(func)
        case ast.BinOp(left=left):
            return _word(left)
    return "…"
