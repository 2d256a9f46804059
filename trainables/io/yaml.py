"""A strict reader of YAML: it accepts data only, refuses repeated keys, and records the place of every key.

PyYAML follows YAML 1.1, in which 1e-4 is text, `no` is false, 1:30 is ninety, 010 is eight and 2021-06-28 is
a date. Here, as in YAML 1.2, 1e-4 is a number, 010 is ten, and `no`, 1:30 and 2021-06-28 are text. Keys are
text.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainables.errors import UserError

#: A configuration is a few kilobytes; a larger file is of another kind, or hostile.
MAX_BYTES = 256 * 1024
#: Most values after every alias is expanded, because a few lines of nested aliases can mean billions.
MAX_VALUES = 50_000


class YamlError(UserError):
    """The file cannot be read as YAML.

    Attributes:
      place: file, and line and column if they are known.
      rule: the fault.
    """

    def __init__(self, place: str, rule: str) -> None:
        self.place, self.rule = place, rule
        super().__init__(f"{place}: {rule}")


@dataclass(frozen=True, slots=True)
class Document:
    """The content of a YAML text with the place of each key.

    Attributes:
      value: the content, as dicts, lists, numbers, strings, booleans and None.
      places: `file:line:column` of every key and list item, by dotted path; of the file under "".
    """

    value: Any
    places: Mapping[str, str]


class _Loader(yaml.SafeLoader):
    """A loader that only composes nodes. The resolvers below decide the types of plain scalars."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - as PyYAML wants it


_NUMBER = list("-+.0123456789")
_CORE = "tag:yaml.org,2002:"
for _tag, _pattern, _first in (
    ("null", r"(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"(true|True|false|False)$", list("tTfF")),
    ("int", r"([-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+)$", _NUMBER),
    ("float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?$", _NUMBER),
    ("float", r"([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$", _NUMBER),
    ("merge", r"<<$", ["<"]),
):
    _Loader.add_implicit_resolver(_CORE + _tag, re.compile(_pattern), _first)


class _Reader:
    """Converts composed nodes to values, counts them, and records their places."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.num_values = 0
        self.places: dict[str, str] = {}

    def fail(self, node: yaml.Node, rule: str) -> YamlError:
        return YamlError(_place(self.name, node.start_mark), rule)

    def read(self, node: yaml.Node, path: str, within: frozenset[int] = frozenset()) -> Any:
        self.num_values += 1
        if self.num_values > MAX_VALUES:
            raise YamlError(
                self.name, f"stands for more than {MAX_VALUES} values once its aliases are written out"
            )
        if id(node) in within:
            raise self.fail(node, "an alias inside what it stands for would go on for ever")
        within |= {id(node)}
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_CORE}map":
            return self.mapping(node, path, within)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_CORE}seq":
            values = []
            for index, item in enumerate(node.value):
                self.places[inner := _join(path, str(index))] = _place(self.name, item.start_mark)
                values.append(self.read(item, inner, within))
            return values
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        raise self.fail(node, _bad_tag(node.tag))

    def mapping(self, node: yaml.MappingNode, path: str, within: frozenset[int]) -> dict[str, Any]:
        taken_over: dict[str, Any] = {}
        own: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{_CORE}merge":
                # `<<: *anchor` copies another mapping's keys; keys of this mapping override them.
                sources = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                for source in sources:
                    if not isinstance(source, yaml.MappingNode):
                        raise self.fail(value_node, "`<<` takes a mapping, or a list of them")
                    taken_over = self.read(source, path, within) | taken_over
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.fail(key_node, "a key must be a word")
            # Keys stay text, because they are names: the level 10 of a factor is called "10".
            key = self.text(key_node)
            if key in lines:
                raise self.fail(
                    key_node, f"the key {_short(key)} stands here twice, first in line {lines[key]}"
                )
            lines[key] = key_node.start_mark.line + 1
            inner = _join(path, key)
            own[key] = self.read(value_node, inner, within)
            self.places[inner] = _place(self.name, key_node.start_mark)
        return {key: taken_over[key] for key in taken_over if key not in own} | own

    def text(self, node: yaml.ScalarNode) -> str:
        """Returns a text. JSON writes characters above U+FFFF as two escapes, which YAML reads one by one."""
        text: str = node.value
        try:
            text.encode()
        except UnicodeEncodeError:
            try:
                return text.encode("utf-16", "surrogatepass").decode("utf-16")
            except UnicodeDecodeError as error:
                raise self.fail(node, "holds one half of a character that is two escapes") from error
        return text

    def scalar(self, node: yaml.ScalarNode) -> Any:
        if node.tag == f"{_CORE}str":
            return self.text(node)
        text = node.value
        try:
            match node.tag.removeprefix(_CORE):
                case "null":
                    return None
                case "bool":
                    return {"true": True, "false": False}[text.lower()]
                case "int":
                    plain = text.replace("_", "")
                    number = int(plain, 0) if plain[:2] in ("0x", "0o") else int(plain)
                    # Refused as well where Python could not print it.
                    str(number)
                    return number
                case "float":
                    plain = text.replace("_", "").lower()
                    return float(plain.replace(".inf", "inf").replace(".nan", "nan"))
        # An explicit tag may not fit, as in `!!int x`. Python also refuses numbers of thousands of digits.
        except (ValueError, KeyError) as error:
            raise self.fail(
                node, f"{_short(text)} is not of the type {node.tag.removeprefix(_CORE)}"
            ) from error
        raise self.fail(node, _bad_tag(node.tag))


def _bad_tag(tag: str) -> str:
    return f"the tag {_short(tag.replace(_CORE, '!!'))} is refused: this file holds data only"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _place(name: str, mark: yaml.Mark) -> str:
    return f"{name}:{mark.line + 1}:{mark.column + 1}"


#: Replacements for PyYAML's messages about tokens, in terms of lists, quotes and indentation.
_SAID_SIMPLER = (
    (r"found character '\\t' that cannot start any token", "a tab stands here; YAML is indented by spaces"),
    (r"found character (.*) that cannot start any token", r"a word cannot begin with \1; quote it"),
    (r"mapping values are not allowed here", "no key can stand here: quote the text, or indent it right"),
    (r"found undefined alias '(.*)'", r"*\1 stands for nothing: no &\1 comes before it"),
    (r"could not find expected ':'", "this line is no `key: value`"),
    (r"expected <block end>, but found .*", "does not fit the indentation of the lines above"),
    (r"expected ',' or '(.)', but got .*", r"a `,` or `\1` is missing before this"),
    (r"but found another document", "a second document begins here; one file is one document"),
    (r"expected '<document start>', but found .*", "text follows the end of the document"),
    (r"found unexpected end of stream", "the file ends inside quotes"),
    (r"expected the node content, but found .*", "a value is missing here"),
)  # fmt: skip


def _said_simpler(problem: str) -> str:
    for pattern, text in _SAID_SIMPLER:
        if re.fullmatch(pattern, problem):
            return re.sub(pattern, text, problem)
    return problem


def _not_allowed(text: str, position: int, name: str, remedy: str = "") -> YamlError:
    before = text[:position]
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    rule = f"the character U+{ord(text[position]):04X} is not allowed{remedy}"
    return YamlError(f"{name}:{line}:{column}", rule)


def parse_document(text: str, name: str) -> Document:
    """Parses a YAML text to its value and the place of each key.

    Raises:
      YamlError: the text is not YAML, repeats a key in a mapping, or contains more than data.
    """
    reader = _Reader(name)
    # A line break to PyYAML, which its own writer does not know of, and text to JSON and YAML 1.2.
    if (at := text.find("\x85")) >= 0:
        raise _not_allowed(text, at, name, "; write it as \\N in double quotes")
    try:
        node = yaml.compose(text, _Loader)
        value = None if node is None else reader.read(node, "")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = _place(name, mark) if mark else name
        rule = _said_simpler(error.problem or str(error.context))
        opened = error.context_mark
        if (
            error.problem_mark
            and opened
            and opened.line != error.problem_mark.line
            and "flow" in str(error.context)
        ):
            rule += f" (the bracket was opened in line {opened.line + 1})"
        raise YamlError(place, rule) from error
    except yaml.reader.ReaderError as error:
        raise _not_allowed(text, error.position, name) from error
    except RecursionError as error:
        raise YamlError(name, "is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, YamlError):
            raise
        raise YamlError(name, str(error)) from error
    return Document(value, {"": name, **reader.places})


def parse_yaml(text: str, name: str) -> Any:
    """Parses a YAML text to its value.

    Raises:
      YamlError: as `parse_document`.
    """
    return parse_document(text, name).value


def load_document(path: Path) -> Document:
    """Reads a YAML file to its value and the place of each key.

    Raises:
      YamlError: the file does not exist, is too large, is not text, or is not YAML.
    """
    try:
        # Bounded, because a device or pipe may never end.
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise YamlError(str(path), f"is larger than {MAX_BYTES // 1024} KiB, so it is no configuration")
        text = content.decode("utf-8-sig")
    except IsADirectoryError as error:
        raise YamlError(str(path), "is a folder, not a file") from error
    except OSError as error:
        raise YamlError(str(path), error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise YamlError(
            f"{path}:{line}", f"is not UTF-8 text (byte 0x{error.object[error.start]:02x})"
        ) from error
    return parse_document(text, str(path))


def load_yaml(path: Path) -> Any:
    """Reads a YAML file to its value.

    Raises:
      YamlError: as `load_document`.
    """
    return load_document(path).value
