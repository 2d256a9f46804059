"""Faults in what people write: where, which rule, what was found, and what was probably meant."""

import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Tag, ValidationError
from pydantic.fields import FieldInfo

from trainables.io.storage import IsPlace, redacted

Location = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with an input.

    Attributes:
      path: the key, dotted.
      rule: what should hold there.
      found: what stands there instead.
      hint: the nearest name that would have been right.
      place: `file:line:column`, or the option of the command line, if it is known.
    """

    path: str
    rule: str
    found: str = ""
    hint: str = ""
    place: str = ""

    def __str__(self) -> str:
        return (
            (f"{self.place}: " if self.place else "")
            + (f"{self.path}: {self.rule}" if self.path else self.rule)
            + (f" (got {self.found})" if self.found else "")
            + (f"; did you mean `{self.hint}`?" if self.hint else "")
        )


def fault_lines(source: str, faults: Iterable[Fault]) -> str:
    """All faults of one input under its name, one per line."""
    lines = [f"  {fault}" for fault in faults]
    return "\n".join([f"{source}: {len(lines)} fault{'s' if len(lines) != 1 else ''}", *lines])


# ------------------------------------------------------------------------------------- the nearest name

#: What other programs call the same thing.
_ALSO_CALLED = {
    "learning_rate": "lr",
    "wd": "weight_decay",
    "bs": "batch_size",
    "dataset": "data",
    "optimizer": "optim",
    "num_epochs": "epochs",
    "parameters": "vary",
    "space": "vary",
    "constraints": "where",
}


def nearest(word: object, known: Iterable[str]) -> str:
    """The name most like a word; empty if none is."""
    names = list(known)
    plain = str(word)[:80].strip().lower().replace("-", "_").replace(" ", "_")
    also = _ALSO_CALLED.get(plain, plain)
    by_lower = {name.lower(): name for name in names}
    if also in by_lower:
        return by_lower[also]
    # Of short words, and of sizes such as 2gf, almost any other is a neighbour.
    short = len(plain) < 4
    if short and not plain.isalpha():
        return ""
    found = difflib.get_close_matches(plain, by_lower, n=1, cutoff=0.8 if short else 0.6)
    return by_lower[found[0]] if found else ""


def nearest_path(path: str, known: Iterable[str]) -> str:
    """The dotted path most like one; the last key counts first, wherever it stands."""
    paths = list(known)
    last = path.rpartition(".")[2]
    found = nearest(last, [other.rpartition(".")[2] for other in paths])
    ends = [other for other in paths if other.rpartition(".")[2] == found]
    return nearest(path, ends) or (min(ends, key=len) if ends else nearest(path, paths))


# ------------------------------------------------------------------------------- models, taken apart

_NESTED = (typing.Union, types.UnionType)


@dataclass(frozen=True, slots=True)
class Branch:
    """One type that an annotation allows.

    Attributes:
      kind: the type.
      tags: the words by which pydantic tells it from the others.
      place: the mark of text that names a place; None of all else.
    """

    kind: Any
    tags: frozenset[str]
    place: IsPlace | None = None


def branches(
    annotation: Any, tags: frozenset[str] = frozenset(), place: IsPlace | None = None
) -> list[Branch]:
    """Every type that an annotation allows: unions, annotations and aliases taken apart."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        inner, *notes = typing.get_args(annotation)
        tags |= {note.tag for note in notes if isinstance(note, Tag)}
        return branches(inner, tags, next((note for note in notes if isinstance(note, IsPlace)), place))
    if origin in _NESTED:
        return [b for member in typing.get_args(annotation) for b in branches(member, tags, place)]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        tags |= {
            field.default
            for field in annotation.model_fields.values()
            # A word of its own and no other is what pydantic tells members apart by.
            if typing.get_origin(field.annotation) is typing.Literal
            and typing.get_args(field.annotation) == (field.default,)
        }
    return [Branch(annotation, tags, place)]


def _models(found: Iterable[Branch]) -> list[type[BaseModel]]:
    return [b.kind for b in found if isinstance(b.kind, type) and issubclass(b.kind, BaseModel)]


def below(found: Sequence[Branch], key: int | str) -> list[Branch]:
    """The types of what a key of a model, mapping or list holds."""
    fields = [model.model_fields[key] for model in _models(found) if key in model.model_fields]
    if not fields:
        return items(found)
    # pydantic keeps a field's marks and rules beside its type.
    return [b for field in fields for b in branches(Annotated[field.annotation, None, *field.metadata])]


def items(found: Iterable[Branch]) -> list[Branch]:
    """The types of what a list, tuple or mapping holds."""
    return [
        item
        for branch in found
        if (arguments := typing.get_args(branch.kind))
        and typing.get_origin(branch.kind) is not typing.Literal
        for item in branches(arguments[-1] if arguments[-1] is not Ellipsis else arguments[0])
    ]


def _walk(root: type[BaseModel], location: Location) -> tuple[list[int | str], list[Branch]]:
    """The keys of a pydantic location without its tags of unions, and the types allowed where it ends."""
    here, keys = [Branch(root, frozenset())], []
    for part in location:
        tagged = [branch for branch in here if part in branch.tags]
        if tagged and len(here) > 1:
            here = tagged
            continue
        keys.append(part)
        here = below(here, part)
    return keys, here


def paths_of(root: type[BaseModel]) -> dict[str, list[FieldInfo]]:
    """Every dotted path into a model, with the fields that may stand there: one per member of a union.

    Paths end where a model is in itself, as a run is in the run that starts from it.
    """
    found: dict[str, list[FieldInfo]] = {}

    def visit(model: type[BaseModel], prefix: str, around: tuple[type[BaseModel], ...]) -> None:
        for name, field in model.model_fields.items():
            found.setdefault(f"{prefix}{name}", []).append(field)
            for inner in _models(branches(field.annotation)):
                if inner not in around:
                    visit(inner, f"{prefix}{name}.", (*around, inner))

    visit(root, "", (root,))
    return found


# --------------------------------------------------------------------------------------- from pydantic

#: pydantic's rules in fewer words.
_RULES = {
    "extra_forbidden": "unknown key",
    "missing": "is missing",
    "missing_argument": "is missing",
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "must be a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "must be true or false"),
    "string_type": "must be text",
    "model_type": "must be a mapping of keys to values",
    "dict_type": "must be a mapping of keys to values",
    **dict.fromkeys(("tuple_type", "list_type"), "must be a list"),
    "finite_number": "must be a finite number",
    "int_parsing_size": "has too many digits",
}  # fmt: skip


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _rule(message: str) -> str:
    message = message.removeprefix("Value error, ").replace("Input should be", "must be", 1)
    if counted := re.fullmatch(
        r"\w+ should have (at (?:least|most) \d+) items? after validation, not (.*)", message
    ):
        return (
            f"must have {counted[1]} {'entry' if counted[1].endswith(' 1') else 'entries'}, not {counted[2]}"
        )
    return re.sub(r"^(String|Value|Input) should", "must", message)


def faults_in(error: ValidationError, root: type[BaseModel]) -> list[Fault]:
    """A pydantic error as faults.

    Args:
      error: as pydantic raised it.
      root: the model that was validated; by it paths lose what pydantic puts in at unions, and names that
        are nearly right are found.
    """
    faults = []
    for item in error.errors(include_url=False):
        kind, context, location = item["type"], item.get("ctx", {}), item["loc"]
        keys, _ = _walk(root, location)
        path, rule = ".".join(map(str, keys)), _RULES.get(kind) or _rule(item["msg"])
        found = "" if kind in ("missing", "value_error") else shorten(item["input"])
        hint = ""
        if kind == "extra_forbidden" and (owners := _owners(root, keys)):
            rule = f"unknown key here: it belongs to {' and '.join(owners)}"
        elif kind == "extra_forbidden":
            hint = _sibling(root, location)
            prefix = f"{'.'.join(map(str, keys[:-1]))}.".lstrip(".")
            if isinstance(item["input"], str) and f"{prefix}{hint}.name" in paths_of(root):
                # A word is the name of one, not all of it.
                hint = f"{hint}.name"
        elif kind == "literal_error":
            rule = f"must be one of {_listed(context['expected'])}"
            hint = nearest(item["input"], _quoted(context["expected"]))
        elif kind == "union_tag_not_found":
            path, rule, found = f"{path}.{context['discriminator'].strip(chr(39))}", "is missing", ""
        elif kind == "union_tag_invalid":
            path = f"{path}.{context['discriminator'].strip(chr(39))}"
            rule, found = f"must be one of {context['expected_tags']}", shorten(context["tag"])
            hint = nearest(context["tag"], _quoted(context["expected_tags"]))
        faults.append(Fault(path or "file", rule, found, hint))
    # A key that is misspelt is not missing as well.
    meant = {f"{fault.path.rpartition('.')[0]}.{fault.hint}".lstrip(".") for fault in faults if fault.hint}
    return [fault for fault in faults if fault.rule != "is missing" or fault.path not in meant]


def _listed(expected: str) -> str:
    return expected.replace(" or ", ", ")


def _owners(root: type[BaseModel], keys: Sequence[int | str]) -> list[str]:
    """Names of the members of a union that do have the key that another member does not know."""
    _, around = _walk(root, tuple(keys[:-1]))
    return sorted(
        tag
        for branch in around
        for model in _models([branch])
        if keys[-1] in model.model_fields
        for tag in branch.tags
    )


def _sibling(root: type[BaseModel], location: Location) -> str:
    """The name that an unknown key probably stands for: next to it, else anywhere below the root."""
    keys, _ = _walk(root, location)
    _, around = _walk(root, location[:-1])
    names = [name for model in _models(around) for name in model.model_fields]
    return nearest(keys[-1], names) or nearest_path(str(keys[-1]), paths_of(root))


def shorten(value: Any) -> str:
    """A value for a message, of at most 60 characters."""
    try:
        # Before it is cut: half a password is not told from a host.
        text = redacted(repr(value))
    except ValueError:
        # Python writes out no number of thousands of digits.
        text = "a very long number"
    return text if len(text) <= 60 else text[:57] + "..."


def placed(fault: Fault, places: Mapping[str, str]) -> str:
    """Where the key of a fault stands: itself, else the first of its parts, else the whole it belongs to."""
    if fault.path in places:
        return places[fault.path]
    if inside := next((place for path, place in places.items() if path.startswith(f"{fault.path}.")), ""):
        return inside
    return next(iter(places[whole] for whole in _wholes(fault.path) if whole in places), "")


def _wholes(path: str) -> Iterator[str]:
    while path:
        path = path.rpartition(".")[0]
        yield path
