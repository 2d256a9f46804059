"""Faults in input files: the place, the broken rule, the value found, and the name probably meant."""

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
    """One fault of an input.

    Attributes:
      path: the dotted path of the key.
      rule: the rule that the value breaks.
      found: the value found.
      hint: the valid name that is most similar.
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
    """Lists all faults of one input below its name, one per line."""
    lines = [f"  {fault}" for fault in faults]
    return "\n".join([f"{source}: {len(lines)} fault{'s' if len(lines) != 1 else ''}", *lines])


# ------------------------------------------------------------------------------------- the nearest name

#: Names that other programs use for our settings.
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
    """Returns the name most similar to a word. Returns "" if none is similar."""
    names = list(known)
    plain = str(word)[:80].strip().lower().replace("-", "_").replace(" ", "_")
    also = _ALSO_CALLED.get(plain, plain)
    by_lower = {name.lower(): name for name in names}
    if also in by_lower:
        return by_lower[also]
    # Stricter for short words and sizes such as 2gf, because almost any other short word is similar.
    short = len(plain) < 4
    if short and not plain.isalpha():
        return ""
    found = difflib.get_close_matches(plain, by_lower, n=1, cutoff=0.8 if short else 0.6)
    return by_lower[found[0]] if found else ""


def nearest_path(path: str, known: Iterable[str]) -> str:
    """Returns the known path most similar to a dotted path. The last key counts before the others."""
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
      tags: the words by which pydantic distinguishes it from the others.
      place: the mark of text that names a place; None of all else.
    """

    kind: Any
    tags: frozenset[str]
    place: IsPlace | None = None


def branches(
    annotation: Any, tags: frozenset[str] = frozenset(), place: IsPlace | None = None
) -> list[Branch]:
    """Lists every type that an annotation allows, with unions, annotations and aliases resolved."""
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
            # A literal with its default as the only value is the tag that distinguishes members.
            if typing.get_origin(field.annotation) is typing.Literal
            and typing.get_args(field.annotation) == (field.default,)
        }
    return [Branch(annotation, tags, place)]


def _models(found: Iterable[Branch]) -> list[type[BaseModel]]:
    return [b.kind for b in found if isinstance(b.kind, type) and issubclass(b.kind, BaseModel)]


def below(found: Sequence[Branch], key: int | str) -> list[Branch]:
    """Lists the types of the value at a key of a model, mapping or list."""
    fields = [model.model_fields[key] for model in _models(found) if key in model.model_fields]
    if not fields:
        return items(found)
    # Joined here, because pydantic keeps a field's marks and rules apart from its type.
    return [b for field in fields for b in branches(Annotated[field.annotation, None, *field.metadata])]


def items(found: Iterable[Branch]) -> list[Branch]:
    """Lists the types of the items of a list, tuple or mapping."""
    return [
        item
        for branch in found
        if (arguments := typing.get_args(branch.kind))
        and typing.get_origin(branch.kind) is not typing.Literal
        for item in branches(arguments[-1] if arguments[-1] is not Ellipsis else arguments[0])
    ]


def _walk(root: type[BaseModel], location: Location) -> tuple[list[int | str], list[Branch]]:
    """Returns the keys of a pydantic location without tags of unions, and the types allowed at its end."""
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
    """Lists every dotted path into a model with its possible fields, one per member of a union.

    Paths end where a model contains itself, as a run contains the run it starts from.
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

#: Shorter wordings of pydantic's rules.
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
    "model_attributes_type": "must be one word, or a mapping of keys to values",
    "finite_number": "must be a finite number",
    "int_parsing_size": "has too many digits",
}  # fmt: skip


#: A name that is also that of files and folders, and how messages say its pattern.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$"
_IN_WORDS = {
    NAME_PATTERN: "a name takes the letters A to Z, digits, and after the first of these also _ . + and -",
}


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
    """Converts a pydantic error to faults.

    Args:
      error: the error that pydantic raised.
      root: the validated model; it serves to remove pydantic's tags of unions from paths, and to find similar
        names.
    """
    faults = []
    for item in error.errors(include_url=False):
        kind, context, location = item["type"], item.get("ctx", {}), item["loc"]
        keys, _ = _walk(root, location)
        if keys[-1:] == ["[key]"]:
            # The fault is the name of an arm, say, and its place that of what it names.
            del keys[-1]
        path, rule = ".".join(map(str, keys)), _RULES.get(kind) or _rule(item["msg"])
        found = "" if kind in ("missing", "value_error") else shorten(item["input"])
        hint = ""
        if kind == "extra_forbidden" and (owners := _owners(root, keys)):
            rule = f"unknown key here: it belongs to {' and '.join(owners)}"
        elif kind == "extra_forbidden":
            hint = _sibling(root, location)
            prefix = f"{'.'.join(map(str, keys[:-1]))}.".lstrip(".")
            if isinstance(item["input"], str) and f"{prefix}{hint}.name" in paths_of(root):
                # A single word sets the `name` of the member, not the whole setting.
                hint = f"{hint}.name"
        elif kind == "string_pattern_mismatch" and context["pattern"] in _IN_WORDS:
            rule = _IN_WORDS[context["pattern"]]
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
    # A misspelt key is not reported as missing as well.
    meant = {f"{fault.path.rpartition('.')[0]}.{fault.hint}".lstrip(".") for fault in faults if fault.hint}
    return [fault for fault in faults if fault.rule != "is missing" or fault.path not in meant]


def _listed(expected: str) -> str:
    return expected.replace(" or ", ", ")


def _owners(root: type[BaseModel], keys: Sequence[int | str]) -> list[str]:
    """Names of the union members that have a key which the chosen member lacks."""
    _, around = _walk(root, tuple(keys[:-1]))
    return sorted(
        tag
        for branch in around
        for model in _models([branch])
        if keys[-1] in model.model_fields
        for tag in branch.tags
    )


def _sibling(root: type[BaseModel], location: Location) -> str:
    """Returns the name that an unknown key probably means, of its own model if possible, else of any."""
    keys, _ = _walk(root, location)
    _, around = _walk(root, location[:-1])
    names = [name for model in _models(around) for name in model.model_fields]
    return nearest(keys[-1], names) or nearest_path(str(keys[-1]), paths_of(root))


def shorten(value: Any) -> str:
    """Formats a value for a message, in at most 60 characters."""
    try:
        # Redacted before it is cut, because half a password looks like a host.
        text = redacted(repr(value))
    except ValueError:
        # Python refuses to print a number of thousands of digits.
        text = "a very long number"
    return text if len(text) <= 60 else text[:57] + "..."


def placed(fault: Fault, places: Mapping[str, str]) -> str:
    """Returns the place of a fault: of its key, else of the first key below it, else of the nearest above."""
    if fault.path in places:
        return places[fault.path]
    if inside := next((place for path, place in places.items() if path.startswith(f"{fault.path}.")), ""):
        return inside
    return next(iter(places[whole] for whole in _wholes(fault.path) if whole in places), "")


def _wholes(path: str) -> Iterator[str]:
    while path:
        path = path.rpartition(".")[0]
        yield path
