"""Reading the configuration: file, environment, command line, in that order, later ones first.

Everything that can be wrong becomes one sentence: where, which key, what it must be, and what to set it to.
Secrets never enter a message.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from market_data_core.config import Settings
from market_data_core.config_section import KeyProblem, Section
from market_data_core.errors import ConfigError
from market_data_core.redact import SecretUrl, redact

DEFAULT_FILE: Final = Path("configs/streaming.yaml")
"""Read from the working directory when neither ``--config`` nor MDP_CONFIG names a file."""
VARIABLES: Final = {
    "REDIS_URI": "bus.redis.uri",
    "KAFKA_BOOTSTRAP": "bus.kafka.bootstrap",
    "KAFKA_USERNAME": "bus.kafka.username",
    "KAFKA_PASSWORD": "bus.kafka.password",
    "DATABASE_URL": "store.url",
}
"""Variables with a name of their own; every other key is ``MDP_SECTION__KEY``."""
BUILT_IN_BUSES: Final = ("redis", "kafka", "memory")

_OF_REDIS_ALONE: Final = ("uri", "tls_ca", "tls_cert", "tls_key")
_LONGEST_NUMBER: Final = 400
_DEEPEST: Final = 32
_PLACEHOLDER: Final = re.compile(r"\$\$\{|\$\{([A-Za-z_]\w*)(?::-([^}]*))?\}|\$\{")


class Given(NamedTuple):
    """A key set on the command line; ``value`` None means the option was not used."""

    option: str
    key: str
    value: Any


class Key(NamedTuple):
    """One leaf key of the configuration, for ``mdp config show`` and the reference page."""

    path: str
    info: FieldInfo
    owner: type[BaseModel]

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        own = {path: name for name, path in VARIABLES.items()}
        return own.get(self.path) or "MDP_" + self.path.replace(".", "__").upper()

    @property
    def unit(self) -> str | None:
        extra = self.info.json_schema_extra
        return str(extra["unit"]) if isinstance(extra, dict) and "unit" in extra else None


def keys(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[Key]:
    """Every key with a value of its own, in the order of the file; the entries of ``datasets`` are one key."""
    for name, info in model.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield from keys(annotation, f"{prefix}{name}.")
        else:
            yield Key(prefix + name, info, model)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars (so that the symbol ON is no boolean and 1:30 no number), no key twice, and no tags."""

    def fetch_tag(self) -> None:
        raise yaml.scanner.ScannerError(None, None, "a tag such as !name is not understood", self.get_mark())

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        # PyYAML's time to scan brackets within brackets grows with the square of their depth.
        if self.flow_level >= _DEEPEST:
            raise yaml.scanner.ScannerError(None, None, "it is nested too deeply", self.get_mark())
        super().fetch_flow_collection_start(token)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node.value, str):
                continue
            if key_node.value in seen:
                mark = key_node.start_mark
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} is there twice", mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})\\Z"), list(_first))


def _decimal(loader: _Loader, node: yaml.ScalarNode) -> int:
    if len(node.value) > _LONGEST_NUMBER:
        raise yaml.constructor.ConstructorError(None, None, "a number is too long", node.start_mark)
    return int(loader.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _decimal)


@dataclass
class _Layers:
    """The merged values, and for each dotted path who set it."""

    environ: Mapping[str, str]
    file: Path | None = None
    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """Keys that name a variable which is not set, and what to say of each if it is needed."""

    def set(self, path: str, value: Any, source: str) -> None:
        *parents, last = path.split(".")
        node = self.values
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                return  # the file has something else there, which validation will name
            node = child
        node[last] = value
        # What was below it, such as the entries of a list, is gone.
        self.sources = {name: s for name, s in self.sources.items() if not name.startswith(f"{path}.")}
        self.sources[path] = source
        self.missing.pop(path, None)

    def where(self, path: str) -> str:
        """The prefix of a message about ``path``."""
        probe = path
        while probe:
            if probe in self.sources:
                return self.sources[probe]
            probe = probe.rpartition(".")[0]
        return str(self.file) if self.file else "configuration"


def load(
    file: Path | None = None, *, environ: Mapping[str, str] | None = None, given: Iterable[Given] = ()
) -> Settings:
    """The settings of this run.

    Args:
        file: what ``--config`` named. None: ``MDP_CONFIG``, or ``configs/streaming.yaml`` if it is there, or
            defaults alone.
        environ: the environment (default: the process's).
        given: keys set on the command line.

    Raises:
        ConfigError: anything wrong, in one sentence; when there is more, it says how much more.
    """
    settings, found = check(file, environ=environ, given=given)
    if settings is None:
        more = f" (and {len(found) - 1} more: mdp config validate lists them)" if len(found) > 1 else ""
        raise ConfigError(found[0] + more)
    return settings


def check(
    file: Path | None = None, *, environ: Mapping[str, str] | None = None, given: Iterable[Given] = ()
) -> tuple[Settings | None, list[str]]:
    """The settings and no problems, or None and one sentence for each problem."""
    layers = _Layers(os.environ if environ is None else environ)
    try:
        layers.file = _chosen_file(file, layers.environ)
        if layers.file is not None:
            layers.values = _read(layers.file)
            _expand(layers)
        _from_environment(layers)
    except ConfigError as error:
        return None, [str(error)]
    for option, path, value in given:
        if value is not None:
            layers.set(path, list(value) if isinstance(value, tuple) else value, option)
    _without_missing(layers)
    if layers.missing:
        return None, list(layers.missing.values())
    try:
        settings = Settings.model_validate(layers.values)
    except ValidationError as error:
        return None, sentences(error, layers.where, Settings)
    if problem := _unknown_bus(settings, layers):
        return None, [problem]
    settings._file = layers.file
    settings._sources = layers.sources
    return settings, []


def _chosen_file(file: Path | None, environ: Mapping[str, str]) -> Path | None:
    if file is not None:
        return file
    if named := environ.get("MDP_CONFIG"):
        return Path(named)
    return DEFAULT_FILE if DEFAULT_FILE.is_file() else None


def _read(file: Path) -> dict[str, Any]:
    try:
        values = parse_yaml(file.read_bytes(), file)
    except FileNotFoundError:
        raise ConfigError(f"{file}: there is no such file; name another with --config") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}); name another with --config") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: must hold keys and values; start it with `version: 1`")
    return values


def parse_yaml(content: bytes, file: Path) -> Any:
    """What a YAML file holds, read as every file of the configuration is.

    Raises:
        ConfigError: it is no text, or no YAML, or has a key twice.
    """
    try:
        return yaml.load(content.decode("utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: is not UTF-8 text; save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: {_yaml_problem(error)}") from None
    except RecursionError:
        raise ConfigError(f"{file}: is nested too deeply; take out some of its lists") from None


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "something that cannot be read"
    # The problem is PyYAML's own words and never quotes the value; the mark's snippet would.
    line = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return f"{line}is not valid YAML ({redact(str(problem))}); correct that line"


def _expand(layers: _Layers) -> None:
    """Replace ``${NAME}`` and ``${NAME:-default}`` in every text of the file."""
    assert layers.file is not None  # noqa: S101

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, dict):
            return {k: walk(v, f"{path}.{k}" if path else str(k)) for k, v in node.items()}
        if isinstance(node, list):
            return [walk(v, f"{path}.{i}") for i, v in enumerate(node)]
        layers.sources[path] = str(layers.file)
        return _expand_text(node, path, layers) if isinstance(node, str) and "${" in node else node

    layers.values = walk(layers.values, "")


def _expand_text(text: str, path: str, layers: _Layers) -> str:
    def value(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        name, default = match[1], match[2]
        if name is None:
            raise ConfigError(
                f"{layers.file}: {path}: has a '${{' that ends nowhere; write ${{NAME:-default}}, or $${{"
            )
        if found := _variable(name, layers.environ):
            return found[0]
        if default is None:
            layers.missing.setdefault(
                path,
                f"{layers.file}: {path}: environment variable {name} is not set; set it, or write ${{{name}:-default}}",
            )
            return ""
        return default

    return _PLACEHOLDER.sub(value, text)


def _without_missing(layers: _Layers) -> None:
    """Forget what is not set and not needed: where a bus is that is not used. So one file serves for each."""
    bus = layers.values.get("bus")
    used = bus.get("type", "redis") if isinstance(bus, dict) else "redis"
    for path in list(layers.missing):
        driver, _, key = path.removeprefix("bus.").partition(".")
        # Topics, group and retention stand in the section of Redis and are every driver's.
        of_driver = driver in ("redis", "kafka") and (driver == "kafka" or key in _OF_REDIS_ALONE)
        if of_driver and driver != used and isinstance(bus, dict):
            del bus[driver][key], layers.missing[path], layers.sources[path]


def _variable(name: str, environ: Mapping[str, str]) -> tuple[str, str] | None:
    """The value of a variable, or of the file that NAME_FILE names, and which of the two it was."""
    direct, file = environ.get(name), environ.get(f"{name}_FILE")
    if direct and file:
        raise ConfigError(f"environment: {name} and {name}_FILE are both set; unset one of them")
    if direct:
        return direct, f"environment variable {name}"
    if not file:
        return None
    try:
        return Path(file).read_text(encoding="utf-8").strip(), f"environment variable {name}_FILE"
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(
            f"environment: {name}_FILE: cannot read {file} ({reason}); name a readable file"
        ) from None


def _from_environment(layers: _Layers) -> None:
    known = {key.variable: key.path for key in keys() if key.path not in ("version", "datasets")}
    for name, path in known.items():
        if found := _variable(name, layers.environ):
            text, source = found
            layers.set(path, text if name in VARIABLES else _scalar(text), source)
    for name in layers.environ:
        stem = name.removesuffix("_FILE")
        if name.startswith("MDP_") and "__" in name and stem not in known and name not in known:
            raise ConfigError(
                f"environment: {name}: is no key of the configuration; {_nearest(name, list(known))}"
            )


def _scalar(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError:
        return text


def _unknown_bus(settings: Settings, layers: _Layers) -> str | None:
    name = settings.bus.type
    if name in BUILT_IN_BUSES:
        return None
    from importlib.metadata import entry_points

    names = sorted({*BUILT_IN_BUSES, *entry_points(group="mdp.buses").names})
    if name in names:
        return None
    place = f"{layers.where('bus.type')}: bus.type"
    return f"{place}: must be one of {_listed(names)} (got {name!r}); {_nearest(name, names)}"


# --- from pydantic's errors to sentences ---------------------------------------------------------------------


def sentences(
    error: ValidationError,
    where: Callable[[str], str],
    root: type[Section],
    whole: str = "the configuration",
) -> list[str]:
    """What pydantic found wrong with a section ``root``, for a person.

    Args:
        where: what stands before the path of a key: mostly the file.
        whole: what ``root`` is, after "is no key of".
    """
    details = error.errors(include_url=False)
    return [_sentence(d, where, root, whole) for d in details if not _follows(d, details)]


def _sentence(detail: ErrorDetails, where: Callable[[str], str], root: type[Section], whole: str) -> str:
    model, info, parts = _resolve(detail["loc"], root)
    problem = detail["ctx"]["error"] if detail["type"] == "value_error" else None
    if isinstance(problem, KeyProblem):
        parts = [*parts, *problem.key.split(".")]
        model, info, _ = _resolve(tuple(parts), root)
    path = ".".join(parts)
    place = f"{where(path)}: {path}" if path else where(path)
    if detail["type"] == "extra_forbidden":
        return f"{place}: is no key of {whole}; {_nearest(parts[-1], list(model.model_fields))}"
    if detail["type"] == "missing":
        return f"{place}: is missing{_proposal(info)}"
    if detail["type"] == "invalid_key":
        return f"{place}: is no key of {whole}; write a name, in quotes if it is a number"
    if detail["type"] in ("model_type", "model_attributes_type", "dict_type"):
        known = (
            "; give each a name"
            if detail["type"] == "dict_type"
            else f"; known are {_listed(list(model.model_fields))}"
        )
        return f"{place}: must hold keys and values (got {_shown(detail['input'], info)}){known}"
    got = "" if isinstance(problem, KeyProblem) else f" (got {_shown(detail['input'], info)})"
    return f"{place}: {_must(detail, info)}{got}{_proposal(info)}"


def _follows(detail: ErrorDetails, details: list[ErrorDetails]) -> bool:
    """A list is called too short when its entries are wrong; that is said once."""
    loc = detail["loc"]
    return detail["type"] == "too_short" and any(
        d["loc"][: len(loc)] == loc and d is not detail for d in details
    )


def _resolve(
    loc: tuple[int | str, ...], root: type[BaseModel]
) -> tuple[type[BaseModel], FieldInfo | None, list[str]]:
    """Follow an error's location: the innermost section, the field, and the path as a person writes it."""
    model = root
    info: FieldInfo | None = None
    parts: list[str] = []
    inside_dict = False
    for step in loc:
        if inside_dict:  # the name of a dataset
            inside_dict = False
        elif isinstance(step, str) and step in model.model_fields:
            info = model.model_fields[step]
            for nested in (info.annotation, *get_args(info.annotation)):
                if isinstance(nested, type) and issubclass(nested, BaseModel):
                    model = nested
            inside_dict = getattr(info.annotation, "__origin__", None) is dict
        elif isinstance(step, str) and parts and info is not None and _is_tag(step):
            continue  # which member of a union was tried is no part of the path
        parts.append(str(step))
    return model, info, parts


def _is_tag(step: str) -> bool:
    return step in ("int", "str", "float", "none", "[key]") or step.startswith(("function-", "constrained-"))


_MUST: Final = {
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be a text",
    "tuple_type": "must be a list",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have at least {min_length} entry",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must look like {example}",
}


def _must(detail: ErrorDetails, info: FieldInfo | None) -> str:
    context = dict(detail.get("ctx", {}))
    if detail["type"] == "value_error":
        return str(context["error"])
    if detail["type"] == "literal_error":
        return f"must be {str(context['expected']).replace(chr(39), '')}"
    if detail["type"] in _MUST:
        return _MUST[detail["type"]].format(**context, example=_example(info))
    return f"is wrong: {redact(detail['msg'])}"


def _example(info: FieldInfo | None) -> Any:
    if info is None:
        return None
    if info.examples:
        return info.examples[0]
    return info.get_default(call_default_factory=False)


def _proposal(info: FieldInfo | None) -> str:
    example = _example(info)
    if (
        info is None
        or isinstance(example, BaseModel)
        or example is None
        or type(example).__name__.startswith("Pydantic")
    ):
        return ""
    if isinstance(example, SecretUrl | tuple):
        example = str(example) if isinstance(example, SecretUrl) else list(example)
    return f"; set it to e.g. {_written(example)}"


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(_written(item) for item in value) + "]"
    return str(value)


def _shown(value: Any, info: FieldInfo | None) -> str:
    if info is not None and isinstance(info.annotation, type) and issubclass(info.annotation, SecretUrl):
        return repr(str(info.annotation(str(value))))
    if isinstance(value, dict | list):
        return f"{len(value)} {'keys' if isinstance(value, dict) else 'entries'}"
    text = redact(repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known are {_listed(known)}"


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else ", ".join(names[:12]) + ", ..."
