"""The reference of every setting as a Markdown page, from the pydantic models that read the files."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from orchestrator.sweep.config import Resources, Sweep
from orchestrator.sweep.json_schema import Schema, objects_of, summary_of, taken_apart
from orchestrator.sweep.space import DOMAINS, Window
from trainables.config import TrainConfig
from trainables.presets import RECIPES, leaves

_INTRODUCTION = """# Every setting

`vitc-sweep schema --markdown --out docs/settings.md` writes this page from the types that read the files.
[sweep-files.md](sweep-files.md) explains how the parts work together, [models.md](models.md) the models.

- Settings of a run (`model.width`, `optim.lr`, ...) may stand in `base`, `arms` and `cells`, and their
  windows in `vary`. On the command line, `--set PATH=VALUE` sets them under `base`.
- A default of *its own* means: the settings of that part have defaults, which its own table gives.
- *required* means: there is no default. A named size (`model.size`) and a recipe fill in some of these.
"""

#: Keys of a sweep whose values are settings of runs, and how these are written.
_OF_RUNS = {
    "base": "settings of a run",
    "arms": "name: settings of a run",
    "cells": "factor: level: settings of a run",
    "vary": "path of a setting: window",
    "resources": "settings, see [`resources`](#resources)",
}

#: Defaults that the reader of a file fills in.
_FILLED = {"name": "the file's name"}

#: A part of the run, which files write as a percentage.
_SHARE = "#/$defs/Share"

Row = tuple[str, str, str, str]


def settings_page() -> str:
    """Returns the page. Every path has its values, its default and its meaning."""
    run, run_defs = taken_apart(TrainConfig)
    resources, resources_defs = taken_apart(Resources)
    sweep, sweep_defs = taken_apart(Sweep)
    lines = [_INTRODUCTION, "## The sweep file", "", *_table(_rows(sweep, sweep_defs))]
    for name, field in sweep["properties"].items():
        if name not in _OF_RUNS:
            lines += _sections(name, field, sweep_defs)
    lines += ["", "### Windows under `vary`", "", summary_of(Window), "", *_table(_window_rows())]
    lines += ["", "## Resources of a trial", *_sections("resources", resources, resources_defs)]
    [whole] = objects_of(run, run_defs)
    lines += ["", "## A run", "", *_table(_rows(whole, run_defs))]
    for name, field in whole["properties"].items():
        lines += _sections(name, field, run_defs, frozenset({id(whole)}))
    lines += ["", "## Recipes", "", *_table(_recipe_rows(), ("setting", *RECIPES))]
    return "\n".join(lines) + "\n"


def _sections(
    path: str, schema: Schema, defs: Mapping[str, Schema], around: frozenset[int] = frozenset()
) -> Iterator[str]:
    """Yields a section for every object that a setting can be, and for those inside it.

    Objects in `around` are skipped, because a run may hold a run.
    """
    for member in [*objects_of(schema, defs), *objects_of(schema.get("items", {}), defs)]:
        if id(member) in around or member is defs.get("Share"):
            continue
        chosen = [(key, field["const"]) for key, field in member["properties"].items() if "const" in field]
        which = "".join(f" with `{key}: {word}`" for key, word in chosen)
        yield from ("", f"### `{path}`{which}", "", _first_paragraph(member), "")
        yield from _table(_rows(member, defs, f"{path}."))
        for key, field in member["properties"].items():
            yield from _sections(f"{path}.{key}", field, defs, around | {id(member)})


def _rows(member: Schema, defs: Mapping[str, Schema], prefix: str = "") -> Iterator[Row]:
    for name, field in member["properties"].items():
        kind = _kind(field, defs) if prefix or name not in _OF_RUNS else _OF_RUNS[name]
        default = "required" if name in member.get("required", ()) else _default(field)
        if not prefix:
            default = _FILLED.get(name, default)
        yield f"`{prefix}{name}`", kind, default, _plain(field.get("description", ""))


def _window_rows() -> Iterator[Row]:
    for domain in DOMAINS:
        schema, defs = taken_apart(domain)
        for name, field in schema["properties"].items():
            example = f"`{name}: {json.dumps(field['examples'][0])}`"
            yield example, _kind(field, defs), "", f"{summary_of(domain)} {_plain(field['description'])}"
    schema, _ = taken_apart(Window)
    for name in ("when", "zip"):
        field = schema["properties"][name]
        kind = "setting: value" if name == "when" else "path"
        yield f"`{name}`", kind, "none", _plain(field["description"])


def _recipe_rows() -> Iterator[tuple[str, ...]]:
    columns = {name: dict(leaves(recipe)) for name, recipe in RECIPES.items()}
    for path in dict.fromkeys(path for column in columns.values() for path in column):
        yield f"`{path}`", *(_value(column[path]) if path in column else "" for column in columns.values())


def _kind(schema: Schema, defs: Mapping[str, Schema]) -> str:
    """Returns the values that a setting takes, in words."""
    if schema.get("$ref") == _SHARE:
        return "a part of the run, as `10%`"
    if "$ref" in schema:
        return _kind(defs[schema["$ref"].rpartition("/")[2]], defs)
    if "anyOf" in schema:
        kinds = [_kind(member, defs) for member in schema["anyOf"] if member != {"type": "null"}]
        return " or ".join(dict.fromkeys(kinds))
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{word}`" for word in schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "integer" | "number" as word:
            return " ".join(["whole number" if word == "integer" else word, *_bounds(schema)])
        case "boolean":
            return "`true`, `false`"
        case "array":
            if items := schema.get("prefixItems"):
                return f"list of {len(items)}: {_kind(items[0], defs)}"
            return f"list of: {_kind(schema.get('items', {}), defs)}"
        case "object":
            return "settings, see below" if "properties" in schema else "mapping"
        case "string":
            return "text"
    return "any value"


def _bounds(schema: Schema) -> Iterator[str]:
    for key, word in (
        ("exclusiveMinimum", "above"),
        ("minimum", "from"),
        ("exclusiveMaximum", "below"),
        ("maximum", "to"),
    ):
        if (end := schema.get(key)) is not None:
            yield f"{word} {_number(end)}"


def _number(end: float) -> str:
    if end < 2**31:
        return f"{end:,.10g}"
    return f"2^{end.bit_length() - 1}" if isinstance(end, int) else f"{end:g}"


def _default(field: Schema) -> str:
    if "default" not in field:
        # Made by a factory: an empty mapping, or settings that all have a default.
        return "none" if field.get("type") == "object" else "its own"
    return "none" if field["default"] in (None, {}, [], "") else _value(field["default"])


def _value(value: Any) -> str:
    if isinstance(value, dict) and value.keys() == {"share"}:
        return f"`{100 * value['share']:g}%`"
    if isinstance(value, float):
        return f"`{value:.4g}`"
    if isinstance(value, list) and len(value) > 6:
        return f"all {len(value)}"
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


def _first_paragraph(member: Schema) -> str:
    return _plain(member.get("description", "").split("\n\n")[0])


def _plain(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|")


def _table(
    rows: Iterable[tuple[str, ...]], head: tuple[str, ...] = ("setting", "values", "default", "meaning")
) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    return [f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines]
