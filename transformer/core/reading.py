"""Read YAML strictly: plain values only, and the line every key stands on.

Plain values are mappings, lists, text, numbers, booleans and null. Duplicate keys, tags and aliases are
problems, so nothing that is read can run code, grow without bound or be silently lost.
Keys are text as written: `no: x` and `2016: x` have the keys "no" and "2016".
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from .errors import Problem

KeyPath = tuple[str, ...]

_YAML = "tag:yaml.org,2002:"
_REFUSED = object()  # stands for a value that is a problem already
_LONGEST_NUMBER = 1024  # bits
_SCALARS = {_YAML + name for name in ("null", "bool", "int", "float", "str")}


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases and without dates: `2016-07-01` stays text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own name and type
        first: [(tag, pattern) for tag, pattern in rules if tag != _YAML + "timestamp"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not allowed: write the value out", problem_mark=mark
            )
        return super().compose_node(parent, index)

    def construct_decimal(self, node: yaml.ScalarNode) -> int | float:
        """YAML 1.1 reads `010` as 8 and `1:30` as 90: here the one is 10 and the other is refused."""
        text = node.value.replace("_", "")
        if ":" in text:
            raise ValueError("a number in base 60")
        if node.tag == _YAML + "float":
            return self.construct_yaml_float(node)
        number = int(text, 0 if re.match("[-+]?0[xb]", text) else 10)
        if number.bit_length() > _LONGEST_NUMBER:  # Python would not even print it
            raise ValueError("a number of so many digits")
        return number


_Loader.add_constructor(_YAML + "int", _Loader.construct_decimal)
_Loader.add_constructor(_YAML + "float", _Loader.construct_decimal)


def read_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for all that is none, also what is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def written(value: Any) -> str:
    """A value as one would write it in YAML, on one line: null, true, [0.9, 0.98]."""
    return json.dumps(value, ensure_ascii=False, default=str).replace('"', "")


@dataclass
class Document:
    """What a text held: `values`, the line of every key path, and everything wrong with it."""

    name: str
    values: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def source(self, path: KeyPath = ()) -> str:
        """`configs/x.yaml, line 3`: the line of the nearest key at or above `path`."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return self.at(self.lines[path[:length]])
        return self.name

    def at(self, line: int | None) -> str:
        return self.name if line is None else f"{self.name}, line {line}"

    def wrong(self, message: str, line: int | None = None, *, path: KeyPath = (), hint: str = "") -> None:
        self.problems.append(Problem(".".join(path), message, self.at(line), hint))


def read_yaml(text: str | bytes, name: str) -> Document:
    """Parse one YAML document. Raises nothing for bad text: what is wrong stands in `problems`."""
    document = Document(name)
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            value = _value(loader, document, node, ())
            document.values = {} if value is _REFUSED else value
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        document.wrong("not UTF-8 text", line, hint="save the file as UTF-8")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        detail = ", ".join(part for part in (error.context, error.problem) if part)
        document.wrong(f"not valid YAML: {detail}", mark.line + 1 if mark else None)
    except yaml.reader.ReaderError as error:
        line = str(text).count("\n", 0, error.position) + 1
        document.wrong(f"not valid YAML: control character {chr(error.character)!r}", line)
    except RecursionError:
        document.wrong("not valid YAML: nested too deeply")
    except (ValueError, OverflowError) as error:  # PyYAML lets these through, for instance from "\U00110000"
        document.wrong(f"not valid YAML: {error}")
    if document.problems and document.values is None:
        document.values = {}
    return document


def _value(loader: _Loader, document: Document, node: yaml.Node, path: KeyPath) -> Any:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode) and node.tag == _YAML + "map":
        return _mapping(loader, document, node, path)
    if isinstance(node, yaml.SequenceNode) and node.tag == _YAML + "seq":
        items = [_value(loader, document, item, (*path, str(i))) for i, item in enumerate(node.value)]
        return _REFUSED if _REFUSED in items else items
    if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
        try:
            return _sound(loader.construct_object(node))
        except (ValueError, OverflowError, LookupError, yaml.YAMLError):
            document.wrong(f"cannot read {node.value[:40]!r}", line, path=path, hint="write text in quotes")
            return _REFUSED
    if node.tag in (_YAML + "value", _YAML + "merge"):  # `=` and `<<` are plain text to us
        return node.value
    tag = node.tag.replace(_YAML, "!!")
    document.wrong(f"the tag {tag} is not allowed", line, path=path, hint="only plain values may stand here")
    return _REFUSED


def _sound(value: Any) -> Any:
    """The value; ValueError for text with half a surrogate pair, which no file and no terminal takes.

    The halves by which Python writes bytes of a file name that are not UTF-8 are taken.
    """
    if isinstance(value, str):
        value.encode("utf-8", "surrogateescape")
    return value


def halved(text: str) -> bool:
    """Has it half a surrogate pair: by an escape, or by what Python makes of bytes that are no UTF-8?"""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _mapping(loader: _Loader, document: Document, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or halved(key_node.value):
            document.wrong("a key must be text", line, path=path)
            continue
        key = key_node.value
        where = (*path, key)
        if where in document.lines:
            first = document.lines[where]
            document.wrong(
                f"duplicate key, first on line {first}", line, path=where, hint="keep one of the two"
            )
            continue
        document.lines[where] = line
        value = _value(loader, document, value_node, where)
        if value is not _REFUSED:
            values[key] = value
    return values
