"""Offsets of positions, which mean nothing on another bus than the one that they were written on."""

from __future__ import annotations

from collections.abc import Callable

from market_data_core.errors import ConfigError
from market_data_core.protocols import Claim
from market_data_pipeline.streaming.bus import Offset


def of_this_bus(claim: Claim, parse: Callable[[str], Offset]) -> Callable[[str], Offset]:
    """``parse`` for the positions of ``claim``.

    Raises (when it is called):
        ConfigError: the offset was written on another bus.
    """

    def parsed(text: str) -> Offset:
        try:
            return parse(text)
        except ValueError as error:
            raise ConfigError(
                f"group {claim.group} has read partition {claim.partition} of {claim.topic} on another bus: {error}; "
                "set bus.type back, or take the topic along with mdp stream migrate"
            ) from None

    return parsed
