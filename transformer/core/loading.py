"""Build a section tree from YAML files and the command line, and report every problem at once.

Precedence: default < `extends:` parents, in order < the file < overrides, left to right. Sections are
merged key by key; any other value, lists and free mappings included, is replaced whole, except that an
override may name one key of a free mapping (`--set data.test.mine=path`), or of a plan: laid over a name
(`--set model.norm.decoder=rms` over `layer`) it makes that the `default` of the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from .configuration import Section
from .disk import regular
from .errors import ConfigError, Problem
from .explaining import explain_failures
from .options import holds_plan, subsection
from .plans import opened
from .reading import Document, KeyPath, halved, read_yaml
from .registry import nearest

S = TypeVar("S", bound=Section)
LARGEST = 4_000_000  # bytes of a file; reading on would fill the memory, of /dev/zero for ever


class _Dumper(yaml.SafeDumper):
    """SafeDumper that escapes what YAML would fold: line separators inside text."""

    def represent_text(self, text: str) -> yaml.Node:
        folded = any(separator in text for separator in "\r\x85\u2028\u2029")
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if folded else None)


_Dumper.add_representer(str, _Dumper.represent_text)


@dataclass(frozen=True)
class Override:
    """One value from the command line; `source` is how the user wrote it: `--lr 1e-3`."""

    path: KeyPath
    value: Any
    source: str


@dataclass
class Layers:
    """Values from several places laid over each other, and where each came from."""

    root: type[Section]
    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unread: bool = False  # a file could not be parsed: what is missing may stand there

    def source(self, path: KeyPath) -> str:
        """Where the value at `path`, or else the nearest value above it, came from."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.sources:
                return self.sources[path[:length]]
        return "default"

    def add_document(self, document: Document) -> None:
        self.problems.extend(document.problems)
        self.unread = self.unread or bool(document.problems)
        if document.values is None:  # an empty file
            return
        if not isinstance(document.values, dict):
            self.problems.append(Problem("", "expected `key: value` lines at the top level", document.name))
            self.unread = True
            return
        values = {key: value for key, value in document.values.items() if key != "extends"}
        self._merge(self.root, self.values, values, (), document.source)

    def add_override(self, override: Override) -> None:
        section: type[Section] | None = self.root
        target, in_plan = self.values, False
        for depth, name in enumerate(override.path[:-1]):
            inner = subsection(section, name) if section is not None else None
            current = target.get(name)
            if inner is None and current is None and section is not None and name in section.model_fields:
                current = section.model_fields[name].get_default(call_default_factory=True)
            in_plan = in_plan or (section is not None and holds_plan(section, name))
            if in_plan and current is not None and not isinstance(current, dict):
                current = opened(current)
            if not isinstance(current, dict):
                current = {}
                self.sources[override.path[: depth + 1]] = override.source
            target[name] = current = dict(current)
            section, target = inner, current
        *parents, name = override.path
        if section is not None:
            self._merge(section, target, {name: override.value}, tuple(parents), lambda path: override.source)
        else:
            target[name] = override.value
            self._remember(override.path, override.value, lambda path: override.source)

    def _merge(
        self,
        section: type[Section],
        target: dict[str, Any],
        values: Mapping[str, Any],
        at: KeyPath,
        source: Callable[[KeyPath], str],
    ) -> None:
        for name, value in values.items():
            path = (*at, name)
            inner = subsection(section, name)
            if inner is None:
                target[name] = deepcopy(value)
                self._remember(path, value, source)
            elif value is None or isinstance(value, dict):
                target.setdefault(name, {})
                self.sources[path] = source(path)
                self._merge(inner, target[name], value or {}, path, source)
            else:
                message = f"expected the options of a section, got {value!r}"
                self.problems.append(
                    Problem(".".join(path), message, source(path), f"write `{name}:` and options below it")
                )

    def _remember(self, path: KeyPath, value: Any, source: Callable[[KeyPath], str]) -> None:
        for stale in [known for known in self.sources if known[: len(path)] == path]:
            del self.sources[stale]
        self.sources[path] = source(path)
        items = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        for key, inner in items:
            self._remember((*path, str(key)), inner, source)


def load(section: type[S], file: str | Path | None = None, overrides: Sequence[str | Override] = ()) -> S:
    """Read `file` (None: defaults only), lay `overrides` over it and build the section.

    An override is an `Override` or the text of a `--set`: `model.d_model=512`.
    Raises ConfigError with every problem found.
    """
    layers = Layers(section)
    if file is not None:
        for document in _documents(os.fspath(file), (), "", layers.problems):
            layers.add_document(document)
        layers.unread = layers.unread or bool(layers.problems)
    for item in overrides:
        override = parse_override(item, layers.problems) if isinstance(item, str) else item
        if override is not None:
            layers.add_override(override)
    return build(section, layers)


def build(section: type[S], layers: Layers) -> S:
    """The section that `layers` describe, or ConfigError with all of its problems."""
    built, problems = explain_failures(section, layers.values, layers.source, layers.unread)
    problems = [*layers.problems, *problems]
    if problems or built is None:
        raise ConfigError(problems)
    return built


def parse_override(text: str, problems: list[Problem]) -> Override | None:
    """`a.b=value`, split at the first `=`; the value is read by the rules of the files."""
    source = f"--set {text if len(text) <= 60 else text[:57] + '...'}"
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if halved(key):
        problems.append(Problem("", "a key must be text", source))
        return None
    if not equals or not all(path):
        problems.append(Problem("", "expected section.key=value", source))
        return None
    document = read_yaml(value, source)
    problems.extend(Problem(key, problem.message, source, problem.hint) for problem in document.problems)
    return None if document.problems else Override(path, document.values, source)


def to_yaml(section: Section) -> str:
    """The complete section as YAML; loading it gives an equal section."""
    values = section.model_dump(mode="json")
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


def _documents(name: str, chain: tuple[str, ...], source: str, problems: list[Problem]) -> Iterator[Document]:
    """The documents of a file, parents first. `source` is the line that asked for it."""
    identity = os.path.realpath(name) if "\0" not in name else name
    if identity in chain:
        circle = [*chain[chain.index(identity) :], identity]
        arrows = " -> ".join(os.path.basename(link) for link in circle)
        problems.append(Problem("extends", f"the files extend each other in a circle: {arrows}", source))
        return
    try:
        # What the user names may be a pipe; what a file names, as one that came with a run, may not.
        with open(name, "rb", opener=regular if chain else None) as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} bytes, and is no configuration")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        problems.append(Problem("", f"cannot read {name}: {reason}", source, similar_file(name)))
        return
    document = read_yaml(content, name)
    asked = document.values.get("extends") if isinstance(document.values, dict) else None
    parents = asked if isinstance(asked, list) else [] if asked is None else [asked]
    for parent in parents:
        line = document.source(("extends",))
        if isinstance(parent, str) and parent:
            path = os.path.normpath(os.path.join(os.path.dirname(name), parent))
            yield from _documents(path, (*chain, identity), line, problems)
        else:
            problems.append(
                Problem("extends", f"expected a file name or a list of them, got {parent!r}", line)
            )
    yield document


def similar_file(name: str, but: str = "") -> str:
    """`did you mean configs/demo.yaml?` where the folder holds a file of such a name, other than `but`."""
    folder, base = os.path.split(name)
    try:
        others = [other for other in sorted(os.listdir(folder or ".")) if other != os.path.basename(but)]
        guess = nearest(base, others)
    except (OSError, ValueError):
        return ""
    return f"did you mean {os.path.join(folder, guess)}?" if guess and guess != base else ""
