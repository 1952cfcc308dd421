"""rules.yaml: what is a signal, as a list of rules.

The whole file is read and compiled before any of it counts. What is wrong becomes one sentence each: the file, the
rule, the key, the column, and the fix.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

from pydantic import ValidationError

import market_data_pipeline
from market_data_core.config import Settings
from market_data_core.config_files import parse_yaml, sentences
from market_data_core.errors import ConfigError
from market_data_core.events import parse_interval
from market_data_pipeline.features.definitions import definitions, feature_names
from market_data_pipeline.inference.decider import interval_of
from market_data_pipeline.inference.rule import Rule, RuleCompiler, RuleSection

DEFAULT_FILE: Final = "configs/rules.yaml"
MAX_BYTES: Final = 1_048_576
MAX_RULES: Final = 1000


def locate(settings: Settings) -> Path:
    """Where the rules are that ``settings`` name; where there is nothing by the default name, the ones that come
    with mdp."""
    given = settings.inference.adapters.rules.file
    path = settings.locate(given)
    return path if path.exists() or given != DEFAULT_FILE else shipped()


def shipped() -> Path:
    """The rules that come with mdp: in the package when it is installed, else in the checkout."""
    package = Path(market_data_pipeline.__file__).parent
    inside = package / DEFAULT_FILE
    return inside if inside.is_file() else package.parent / DEFAULT_FILE


def computable(settings: Settings) -> Callable[[Sequence[str]], object]:
    """A check that features can be computed from the bars of ``inference.interval``."""
    interval_ns = parse_interval(interval_of(settings))
    return lambda names: definitions(settings.features, interval_ns, names)


def nothing(_: object) -> None:
    """A check that everything passes."""


def problems_of(settings: Settings) -> list[str]:
    """What is wrong with the rules that ``settings`` name, one sentence each; nothing while rules are disabled."""
    if not settings.inference.adapters.rules.enabled:
        return []
    file = locate(settings)
    try:
        return check_rules(read(file), file, feature_names(settings.features), computable(settings))[1]
    except ConfigError as error:
        return [str(error)]


def load_rules(file: Path, features: Collection[str]) -> tuple[Rule, ...]:
    """The rules in ``file``, in its order. ``features`` are the names that may stand in them.

    Raises:
        ConfigError: anything wrong, in one sentence; when there is more, it says how much more.
    """
    return rules_of(read(file), file, features)


def rules_of(
    content: bytes, file: Path, features: Collection[str], check: Callable[[Sequence[str]], object] = nothing
) -> tuple[Rule, ...]:
    """:func:`load_rules` of what was read already. ``check`` is as in :func:`check_rules`."""
    rules, problems = check_rules(content, file, features, check)
    if problems:
        more = f" (and {len(problems) - 1} more: mdp config validate lists them)" if len(problems) > 1 else ""
        raise ConfigError(problems[0] + more)
    return rules


def read(file: Path) -> bytes:
    """What is in ``file``.

    Raises:
        ConfigError: it cannot be read, or is no rules file by its size.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise ConfigError(f"{file}: is not a file; name one in inference.adapters.rules.file")
        with file.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(
            f"{file}: there is no such file; write it, or name another in inference.adapters.rules.file"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "its name is no path"
        raise ConfigError(
            f"{file}: cannot be read ({reason}); name another in inference.adapters.rules.file"
        ) from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{file}: is larger than {MAX_BYTES:,} bytes; split it")
    return content


def check_rules(
    content: bytes, file: Path, features: Collection[str], check: Callable[[Sequence[str]], object] = nothing
) -> tuple[tuple[Rule, ...], list[str]]:
    """The rules that are right, and one sentence for each problem.

    Args:
        check: called with the features of each rule; a ConfigError is a problem of it.
    """
    try:
        written = _entries(content, file)
    except ConfigError as error:
        return (), [str(error)]
    rules: list[Rule] = []
    problems: list[str] = []
    names: set[str] = set()
    for number, entry in enumerate(written, 1):
        place = f"{file}: rule {_called(entry, number)}"
        try:
            section = RuleSection.model_validate(entry)
        except ValidationError as error:
            problems += sentences(error, partial(_constant, place), RuleSection, "a rule")
            continue
        if section.name in names:
            problems.append(f"{place}: name: is the name of a rule above too; take another")
        names.add(section.name)
        compiler = RuleCompiler(features, place)
        rule = compiler.rule(section)
        problems += compiler.problems
        if rule is None:
            continue
        try:
            check(rule.features)
            rules.append(rule)
        except ConfigError as error:
            problems.append(f"{place}: cannot be had from these bars: {error}")
    return tuple(rules), problems


def _entries(content: bytes, file: Path) -> list[Any]:
    written = parse_yaml(content, file)
    if not isinstance(written, list):
        found = "is empty" if written is None else "must hold a list of rules"
        raise ConfigError(f"{file}: {found}; begin each rule with `- name:`, or write [] for none")
    if len(written) > MAX_RULES:
        raise ConfigError(f"{file}: has {len(written)} rules, more than {MAX_RULES}; split it")
    return written


def _constant(place: str, _: str) -> str:
    return place


def _called(entry: Any, number: int) -> str:
    """How a message names a rule: by its name if it has a usable one, else by its number from 1."""
    name = entry.get("name") if isinstance(entry, dict) else None
    usable = isinstance(name, str) and 0 < len(name) <= 64 and name.isprintable()
    return cast(str, name) if usable else f"number {number}"
