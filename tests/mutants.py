"""Mutants of a module: its text with one small error put into a function, as programmers make them; tests/benchmarks/mutations.py
runs them."""

from __future__ import annotations

import ast
import copy
import hashlib
from collections.abc import Iterator
from typing import NamedTuple

Place = ast.expr | ast.stmt
Change = tuple[Place, ast.AST]
"""What is there, and what is put in its place."""

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Add,
    ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
}  # fmt: skip
_SPOKEN = {"Field", "log", "logger", "warnings"}
"""Calls whose arguments are words for people: not mutated."""


class Mutant(NamedTuple):
    """A module with one error in it."""

    line: int
    """Of the first line that differs."""
    last_line: int
    before: str
    after: str
    text: str
    """Of the whole module."""
    function: str
    """Name of the function that it is made in."""
    key: str
    """Of the change and the function: the same for as long as these are."""


def mutants(text: str) -> list[Mutant]:
    """Every mutant of a module's text, in the order of their lines."""
    tree, found = ast.parse(text), []
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for place, changed in _changes(tree.body):
        before, after = ast.unparse(place), ast.unparse(ast.fix_missing_locations(changed))
        last = place.end_lineno or place.lineno
        around = [node for node in functions if node.lineno <= place.lineno and last <= (node.end_lineno or 0)]
        function = max(around, key=lambda node: node.lineno)
        where = (place.lineno - function.lineno, place.col_offset)
        key = hashlib.sha256(repr((ast.unparse(function), where, before, after)).encode()).hexdigest()[:16]
        found.append(Mutant(place.lineno, last, before, after, _put_in(text, place, after), function.name, key))
    return sorted(found, key=lambda mutant: mutant.line)


def _put_in(text: str, place: Place, after: str) -> str:
    """The text with this in the place's stead; lines after it keep their numbers."""
    lines = text.encode().splitlines(keepends=True)
    assert place.end_lineno is not None and place.end_col_offset is not None
    first, last = place.lineno - 1, place.end_lineno - 1
    head, tail = lines[first][: place.col_offset], lines[last][place.end_col_offset :]
    # The lines of a compound statement keep the block's indentation; what stands in an expression keeps to itself.
    indented = after.replace("\n", "\n" + " " * place.col_offset) if isinstance(place, ast.stmt) else f"({after})"
    saved = max(0, last - first - after.count("\n"))
    within = [head, indented.encode(), tail.rstrip(b"\n"), b"\n" * (1 + saved)]
    return b"".join([*lines[:first], *within, *lines[last + 1 :]]).decode()


# What can be changed ----------------------------------------------------------------------------------------------------
def _changes(body: list[ast.stmt], function: bool = False) -> Iterator[Change]:
    for statement in body:
        yield from _statement(statement, function)


def _statement(node: ast.stmt, function: bool) -> Iterator[Change]:
    match node:
        case ast.Expr(value=ast.Constant()) | ast.Import() | ast.ImportFrom() | ast.Pass() | ast.Assert():
            return
        case ast.Expr(value=ast.Call() as call) if _is_spoken(call):
            return
        case ast.FunctionDef():
            yield from _changes(node.body, function=True)
            return
        case ast.ClassDef():
            yield from _changes(node.body)
            return
        case _ if not function:
            return  # constants, fields and their defaults
        case ast.Raise():
            yield node, ast.Pass()
            return
        case ast.AnnAssign():
            if node.value is not None:
                yield from _expression(node.value)
            return
        case ast.Break():
            yield node, ast.Continue()
            return
        case ast.Continue():
            yield node, ast.Break()
            return
    if isinstance(node, ast.Expr) or (isinstance(node, ast.AugAssign | ast.Assign) and not _is_first_name(node)):
        yield node, ast.Pass()
    if isinstance(node, ast.Return) and node.value is not None and not _is_constant(node.value):
        yield node, ast.Return(ast.Constant(None))
    if isinstance(node, ast.AugAssign) and (other := _OPERATORS.get(type(node.op))):
        yield node, _with(node, op=other())
    if isinstance(node, ast.If | ast.While) and not _has_an_opposite(node.test):
        yield node.test, ast.UnaryOp(ast.Not(), node.test)
    if isinstance(node, ast.With) and all(item.optional_vars is None for item in node.items):
        yield node, ast.If(ast.Constant(True), node.body, [])
    if isinstance(node, ast.Try):
        for handler in node.handlers:
            if not isinstance(handler.body[-1], ast.Raise):
                yield node, _with(node, handlers=[_with(h, body=[ast.Raise()]) if h is handler else h for h in node.handlers])
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield from _statement(child, function)
        elif isinstance(child, ast.ExceptHandler | ast.match_case):
            yield from _changes(child.body, function)
        elif isinstance(child, ast.withitem):
            yield from _expression(child.context_expr)
        elif isinstance(child, ast.expr):
            yield from _expression(child)


def _expression(node: ast.expr) -> Iterator[Change]:
    match node:
        case ast.JoinedStr() | ast.Lambda(body=ast.JoinedStr()):
            return  # words for people
        case ast.Call() if _is_spoken(node):
            return
        case ast.Compare(ops=[first, *rest]):
            for other in _COMPARISONS[type(first)]:
                yield node, _with(node, ops=[other(), *rest])
            if rest:
                for other in _COMPARISONS[type(rest[-1])]:
                    yield node, _with(node, ops=[first, *rest[:-1], other()])
        case ast.BoolOp():
            yield node, _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            yield node, node.operand
        case ast.BinOp() if other := _OPERATORS.get(type(node.op)):
            if not (isinstance(node.op, ast.Add | ast.Mod) and _is_text(node.left, node.right)):
                yield node, _with(node, op=other())
        case ast.IfExp() if not _has_an_opposite(node.test):
            yield node.test, ast.UnaryOp(ast.Not(), node.test)
        case ast.Constant(value=bool(value)):
            yield node, ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield node, ast.Constant(value + 1)
            yield node, ast.Constant(value - 1)
        case ast.Constant(value=float(value)):
            yield node, ast.Constant(value * 2 if value else 1.0)
        case ast.Call(func=ast.Name(id="max" | "min")):
            pass  # in any order
        case ast.Call(args=[first, second, *others]) if not isinstance(first, ast.Starred) and not isinstance(second, ast.Starred):
            yield node, _with(node, args=[second, first, *others])
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            yield from _expression(child)
        elif isinstance(child, ast.keyword):
            yield from _expression(child.value)
        elif isinstance(child, ast.comprehension):
            yield from _expression(child.iter)
            for condition in child.ifs:
                if not _has_an_opposite(condition):
                    yield condition, ast.UnaryOp(ast.Not(), condition)
                yield from _expression(condition)


def _with(node: ast.AST, **changes: object) -> ast.AST:
    """A copy of the node with these fields."""
    copied = copy.copy(node)
    for name, value in changes.items():
        setattr(copied, name, value)
    return copied


def _is_spoken(call: ast.Call) -> bool:
    root: ast.expr = call.func
    while isinstance(root, ast.Attribute):
        root = root.value
    return isinstance(root, ast.Name) and root.id in _SPOKEN


def _is_first_name(node: ast.AugAssign | ast.Assign) -> bool:
    """Whether it gives a name its value, which without it would be an error at the first use: no mutant to learn from."""
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name | ast.Tuple)


def _is_constant(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant)


def _has_an_opposite(node: ast.expr) -> bool:
    """Whether one of the expression's own mutants is its opposite."""
    negated = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    return negated or isinstance(node, ast.Constant) or (isinstance(node, ast.Compare) and len(node.ops) == 1)


def _is_text(*nodes: ast.expr) -> bool:
    return any(isinstance(n, ast.JoinedStr) or (isinstance(n, ast.Constant) and isinstance(n.value, str)) for n in nodes)
