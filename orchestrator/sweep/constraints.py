"""Constraints: comparisons over the settings of a run and what it costs. A small language, parsed, never run.

    optim.lr * optim.weight_decay < 1e-3
    1 <= flops_g <= 2 and model.width % model.heads == 0
    model.stem in ('patchify', 'conv') or not optim.nesterov

Names are paths into `TrainConfig` or among `FOLLOWS`. There are numbers, 'words', true, false and null;
+ - * / %; comparisons, which may be chained; in; and, or, not; parentheses. Nothing else.
"""

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trainables.errors import UserError
from trainables.models.base import Cost

#: What follows from a run's model: name in a constraint, and how it is found from the cost of one image.
DERIVED: Mapping[str, Callable[[Cost], float]] = {
    "params_m": lambda cost: cost.params_m,
    "flops_g": lambda cost: cost.flops_g,
    "activations_m": lambda cost: cost.activations_m,
}

#: Most memory that a worker holds, in GiB: of a run and not of an image, counted by `trainables.footprint`.
MEMORY = "memory_gib"

#: Names of what follows from a run and does not stand in it.
FOLLOWS = (*DERIVED, MEMORY)

MAX_LENGTH = 500

#: The value of a name. Raises KeyError where the run has no such setting.
Lookup = Callable[[str], Any]


class ConstraintError(UserError):
    """A constraint that cannot be read, or means nothing for the values it meets."""


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
    """A name that a run has no value for."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """A comparison that a run has to fulfil.

    Attributes:
      text: as in the file.
      names: the settings and derived quantities it speaks of, in order.
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
                # `1 is 1` and the like warn; they are refused below.
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
            raise ConstraintError("speaks of no setting")
        return cls(text, tuple(names), tree)

    def holds(self, lookup: Lookup) -> bool:
        """Whether a run fulfils it. A constraint on a setting that the run has not, or is null, always holds.

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
    """A constraint with other words where some settings are compared with words.

    Args:
      text: as in the file; what is no constraint stays as it is.
      concerns: whether it is such a setting, by path.
      change: from a word to what takes its place.
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
    # Columns count bytes. From the end, so that places before stay where they are.
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
    """The path that a name or a chain of attributes spells."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=inner, attr=name):
            return f"{path}.{name}" if (path := _dotted(inner)) else None
    return None


def _check(node: ast.expr, names: dict[str, None]) -> None:
    """Refuses what is not in the language; collects names.

    Raises:
      ConstraintError: with the part that is not.
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
