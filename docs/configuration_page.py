"""docs/configuration.md: every key, from the classes of :mod:`market_data_core.config`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal, get_args, get_origin

import annotated_types as at
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from market_data_core import config_section as config
from market_data_core.config import Dataset, Settings
from market_data_core.config_files import Key, keys
from market_data_core.config_section import Section
from market_data_core.redact import SecretText, SecretUrl

_INTRODUCTION: Final = """\
<!-- Written by `make docs` from market_data_core/config.py. Change it there. -->
# Configuration

`mdp` runs without any configuration: every key has a default, and without `REDIS_URI` and `DATABASE_URL` it uses the
[embedded services](quickstart.md#what-is-running). To change something, set one key in one of these places. The later
one wins:

1. the **default**;
2. the **file**: what `--config FILE` names, else what the variable `MDP_CONFIG` names, else `configs/streaming.yaml`
   in the working directory if it is there;
3. the **environment**: each key has a variable, which is `MDP_` and the key in capitals with `__` for each dot
   (`MDP_MICRO_BATCH__WINDOW_MS=5s`); some have a name of their own instead, such as `REDIS_URI` and `DATABASE_URL`;
4. the **command line**: options such as `--window 5s`.

```bash
mdp config show --changed
mdp config validate configs/production.yaml || true
MDP_MICRO_BATCH__WINDOW_MS=5s mdp config show | grep window_ms
```

`mdp config show` prints every value with its source. `mdp config validate` names everything that is wrong, each in one
sentence with the file, the key and a fix. A wrong configuration ends every command with exit code 2, before it
connects to anything: unknown keys, wrong types and combinations that cannot work are all refused.

**Variables in the file.** `${NAME}` is replaced by the environment variable, and it is an error when it is not set;
`${NAME:-default}` has a default, which may be empty; `$${` is a plain `${`.

**Secrets** belong into the environment or into files, not into the configuration. For every variable that is read,
here or by `${NAME}`, there may be `NAME_FILE` instead: the path of a file with the value, as container secrets come.
Passwords in URLs are hidden in `mdp config show`, logs and errors.

**YAML.** Numbers, `true`, `false` and `null` are read as YAML 1.2 does, so the symbol `ON` is a text and `1:30` is no
number; a symbol that looks like a number needs quotes. A key that is there twice is an error.

**Types.** *Milliseconds* are whole numbers, or texts with a unit: `500ms`, `2s`, `1m`, `1h`, `1d`. *Durations* are such
texts only. Paths are taken from the working directory, or else from the folder of the configuration file, or the
folder above it.

The file that comes with the project, [configs/streaming.yaml](../configs/streaming.yaml), is a start for one machine;
[configs/production.yaml](../configs/production.yaml) for servers of your own, and
[configs/market_data.yaml](../configs/market_data.yaml) shows datasets.
"""

_DATASETS: Final = """\
## datasets.NAME

Files for `mdp stream replay --dataset NAME`, each with a name of your choice. With `preset: lean` the columns, the
time and the price scale follow from the files themselves.
"""


def page() -> str:
    """The whole page."""
    parts = [_INTRODUCTION]
    sections: dict[str, list[Key]] = {}
    for key in keys():
        if key.path != "datasets":
            sections.setdefault(key.path.rpartition(".")[0], []).append(key)
    for path, members in sections.items():
        parts.append(_section(path, members))
    parts.append(_DATASETS)
    parts.append(_table((key.path, key.info, None) for key in keys(Dataset)))
    return "\n".join(parts)


def _section(path: str, members: list[Key]) -> str:
    title = f"## {path}\n\n{_about(path)}\n" if path else "## The top of the file\n"
    prefix = f"{path}." if path else ""
    rows = ((key.path.removeprefix(prefix), key.info, key.variable) for key in members)
    table = _table((name, info, None if name == "version" else variable) for name, info, variable in rows)
    nested = [_list_items(key.info) for key in members]
    return "\n".join([title, table, *filter(None, nested)])


def _about(path: str) -> str:
    """What the section says of itself where it is used."""
    model: type[BaseModel] = Settings
    info: FieldInfo | None = None
    for name in path.split("."):
        info = model.model_fields[name]
        assert isinstance(info.annotation, type)  # noqa: S101
        model = info.annotation
    assert info is not None  # noqa: S101
    return str(info.description)


def _list_items(info: FieldInfo) -> str:
    """The keys of the entries of a list of sections."""
    for item in get_args(info.annotation):
        if isinstance(item, type) and issubclass(item, Section):
            rows = ((key.path, key.info, None) for key in keys(item))
            return "Each entry:\n\n" + _table(rows)
    return ""


def _table(rows: Iterable[tuple[str, FieldInfo, str | None]]) -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, info, variable in rows:
        meaning = str(info.description) + (f"<br>`{variable}`" if variable else "")
        cells = (f"`{name}`", _type(info), _default(info), meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _type(info: FieldInfo) -> str:
    text = _kind(info)
    bounds = list(_bounds(info))
    return f"{text}, {', '.join(bounds)}" if bounds else text


def _kind(info: FieldInfo) -> str:
    named = {
        _validator(config.Milliseconds): "milliseconds",
        _validator(config.Duration): "duration",
        _validator(config.Topic): "topic name",
        _validator(config.Column): "name or position",
    }
    for marker in info.metadata:
        if marker in named:
            return named[marker]
    return _of(info.annotation)


def _validator(alias: Any) -> Any:
    """What tells two annotated aliases of one type apart."""
    return get_args(alias)[1]


def _of(annotation: Any) -> str:
    plain = {
        int: "whole number",
        float: "number",
        str: "text",
        bool: "`true` or `false`",
        SecretUrl: "URL",
        SecretText: "text",
    }
    if annotation in plain:
        return plain[annotation]
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{_value(value)}`" for value in args)
    if origin is tuple:
        return f"list of {_plural(args[0])}"
    known = [_of(arg) for arg in args if arg is not type(None) and hasattr(arg, "__mro__")]
    rest = [
        _of(get_args(arg)[0])
        for arg in args
        if get_origin(arg) is not None and get_origin(arg) is not Literal
    ]
    literal = [_of(arg) for arg in args if get_origin(arg) is Literal]
    return " or ".join(dict.fromkeys([*literal, *known, *rest]))


def _plural(item: Any) -> str:
    if isinstance(item, type) and issubclass(item, Section):
        return "sections"
    if get_origin(item) is Literal:
        return _of(item)
    return "names"


def _bounds(info: FieldInfo) -> Iterator[str]:
    signs = (
        (at.Ge, "ge", "at least"),
        (at.Gt, "gt", "more than"),
        (at.Le, "le", "at most"),
        (at.Lt, "lt", "less than"),
    )
    for kind, attribute, words in signs:
        for rule in info.metadata:
            if isinstance(rule, kind):
                yield f"{words} {getattr(rule, attribute)}"


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if value is None or value == "" or (isinstance(value, SecretUrl) and not value):
        return "empty"
    if isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        return "<br>".join(
            "`{ " + ", ".join(f"{k}: {v}" for k, v in item.model_dump().items()) + " }`" for item in value
        )
    return f"`{_value(value)}`"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return str(value)
