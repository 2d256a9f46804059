"""Constraints: comparisons over the settings of a run and its cost. They are parsed, never run as code.

    optim.lr * optim.weight_decay < 1e-3
    1 <= flops_g <= 2 and model.width % model.heads == 0
    model.stem in ('patchify', 'conv') or not optim.nesterov

A name is a path into `TrainConfig` or one of `FOLLOWS`. The language has numbers, 'words', true, false and
null; + - * / %; comparisons, which may be chained; in; and, or, not; parentheses. It has nothing else.
"""

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trainables.errors import UserError
from trainables.models.base import Cost

#: Quantities that follow from a run's model: name in a constraint, and how it is computed from the cost of
#: one image.
DERIVED: Mapping[str, Callable[[Cost], float]] = {
    "params_m": lambda cost: cost.params_m,
    "flops_g": lambda cost: cost.flops_g,
    "activations_m": lambda cost: cost.activations_m,
}

#: Peak memory of a worker in GiB. It depends on the run, not on one image; `trainables.profiling.footprint`
#: counts it.
MEMORY = "memory_gib"

#: Names of quantities that follow from a run and are not among its settings.
FOLLOWS = (*DERIVED, MEMORY)

MAX_LENGTH = 500

#: Returns the value of a name. Raises KeyError if the run has no such setting.
Lookup = Callable[[str], Any]


class ConstraintError(UserError):
    """A constraint that cannot be read, or that cannot be evaluated for the values of a run."""


_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda value, values: value in values,
    ast.NotIn: lambda value, values: value not in values,
}
_WORDS = {"true": True, "false": False, "null": None}
_CONSTANTS = (int, float, str, bool, type(None))


class _Absent(Exception):
    """Raised inside `_value` for a name that has no value in the run."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """A comparison that every run must fulfil.

    Attributes:
      text: as in the file.
      names: the settings and derived quantities in it, in order.
    """

    text: str
    names: tuple[str, ...]
    _tree: ast.expr

    @classmethod
    def parse(cls, text: str) -> "Constraint":
        """Reads a constraint.

        Raises:
          ConstraintError: it is not in the language; the message says which part.
        """
        if len(text) > MAX_LENGTH:
            raise ConstraintError(f"is longer than {MAX_LENGTH} characters")
        try:
            with warnings.catch_warnings():
                # Python warns of `1 is 1` and the like. `_check` refuses them below.
                warnings.simplefilter("ignore")
                tree = ast.parse(text.strip(), mode="eval").body
        except SyntaxError as error:
            raise ConstraintError(f"is no comparison ({error.msg})") from error
        except (ValueError, RecursionError, MemoryError) as error:
            raise ConstraintError(f"is no comparison ({error})") from error
        names: dict[str, None] = {}
        _check(tree, names)
        if not isinstance(tree, ast.Compare | ast.BoolOp | ast.UnaryOp):
            raise ConstraintError("compares nothing; write something like `optim.lr < 0.1`")
        if not names:
            raise ConstraintError("names no setting")
        return cls(text, tuple(names), tree)

    def holds(self, lookup: Lookup) -> bool:
        """Returns whether a run fulfils the constraint.

        A constraint always holds if it names a setting that the run does not have or that is null.

        Raises:
          ConstraintError: it compares a number with a word, or divides by 0.
        """
        try:
            return bool(_value(self._tree, lookup))
        except _Absent:
            return True
        except ZeroDivisionError as error:
            raise ConstraintError(f"divides by 0 in `{self.text}`") from error
        except (TypeError, OverflowError) as error:
            values = ", ".join(f"{name} = {_shown(lookup, name)}" for name in self.names)
            raise ConstraintError(f"compares what cannot be compared where {values}") from error


def with_words(text: str, concerns: Callable[[str], bool], change: Callable[[str], str]) -> str:
    """Returns a constraint in which words compared with certain settings are replaced.

    Args:
      text: as in the file. Text that is no constraint is returned unchanged.
      concerns: whether words compared with this path are replaced.
      change: returns the replacement of a word.
    """
    try:
        tree = Constraint.parse(text)._tree
    except ConstraintError:
        return text
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and any(
            (path := _dotted(part)) and concerns(path) for part in (node.left, *node.comparators)
        ):
            inside = (inner for part in (node.left, *node.comparators) for inner in ast.walk(part))
            found += [
                part for part in inside if isinstance(part, ast.Constant) and isinstance(part.value, str)
            ]
    # Columns count bytes. Replacing from the end keeps the earlier columns valid.
    lines = text.strip().encode().splitlines(keepends=True)
    for part in sorted(found, key=lambda part: (part.lineno, part.col_offset), reverse=True):
        if part.lineno == part.end_lineno:
            line, word = lines[part.lineno - 1], repr(change(str(part.value))).encode()
            lines[part.lineno - 1] = line[: part.col_offset] + word + line[part.end_col_offset :]
    return b"".join(lines).decode() if found else text


def _shown(lookup: Lookup, name: str) -> str:
    try:
        return repr(lookup(name))[:60]
    except KeyError:
        return "not set"


def _dotted(node: ast.expr) -> str | None:
    """Returns the dotted path that a name or a chain of attributes spells. None if it is neither."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=inner, attr=name):
            return f"{path}.{name}" if (path := _dotted(inner)) else None
    return None


def _check(node: ast.expr, names: dict[str, None]) -> None:
    """Checks that an expression is in the language, and collects its names.

    Raises:
      ConstraintError: a part is not in the language. The message names it.
    """
    match node:
        case ast.BoolOp(values=parts):
            pass
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.UAdd(), operand=part):
            parts = [part]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            parts = [left, right]
        case ast.Compare(left=left, ops=ops, comparators=others) if all(
            type(op) in _COMPARISONS for op in ops
        ):
            parts = [left, *others]
            for comparison, other in zip(ops, others, strict=True):
                if isinstance(comparison, ast.In | ast.NotIn) and not isinstance(other, ast.Tuple | ast.List):
                    raise ConstraintError("`in` takes a list of values, as in `batch_size in [32, 64]`")
        case ast.Tuple(elts=parts) | ast.List(elts=parts) if all(
            isinstance(part, ast.Constant | ast.UnaryOp) or _dotted(part) in _WORDS for part in parts
        ):
            pass
        case ast.Constant(value=value) if isinstance(value, _CONSTANTS):
            parts = []
        case ast.Name() | ast.Attribute() if path := _dotted(node):
            parts = []
            if path not in _WORDS:
                names[path] = None
        case _:
            raise ConstraintError(f"`{ast.unparse(node)[:60]}` is not in the language of constraints")
    for part in parts:
        _check(part, names)


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(value)
    return value


def _value(node: ast.expr, lookup: Lookup) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            return [_value(part, lookup) for part in parts]
        case ast.BoolOp(op=ast.And(), values=parts):
            return all(_value(part, lookup) for part in parts)
        case ast.BoolOp(values=parts):
            return any(_value(part, lookup) for part in parts)
        case ast.UnaryOp(op=ast.Not(), operand=part):
            return not _value(part, lookup)
        case ast.UnaryOp(op=op, operand=part):
            number = _number(_value(part, lookup))
            return -number if isinstance(op, ast.USub) else number
        case ast.BinOp(left=left, op=op, right=right):
            return _ARITHMETIC[type(op)](_number(_value(left, lookup)), _number(_value(right, lookup)))
        case ast.Compare(left=first, ops=ops, comparators=others):
            left = _value(first, lookup)
            for comparison, other in zip(ops, others, strict=True):
                right = _value(other, lookup)
                if (left is None or right is None) and not isinstance(
                    comparison, ast.Eq | ast.NotEq | ast.In | ast.NotIn
                ):
                    raise _Absent
                if not _COMPARISONS[type(comparison)](left, right):
                    return False
                left = right
            return True
    path = _dotted(node)
    assert path is not None, "parse() lets nothing else through"
    if path in _WORDS:
        return _WORDS[path]
    try:
        return lookup(path)
    except KeyError as error:
        raise _Absent from error
