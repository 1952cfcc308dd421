"""Offsets of positions, which mean nothing on another bus, or in another topic, than those they were written for."""

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


def check_topic_id(claim: Claim, topic_id: str) -> None:
    """See that the positions of ``claim`` are of the topic with ``topic_id``, where both are known.

    Raises:
        ConfigError: they are of another one.
    """
    if topic_id and claim.topic_id and topic_id != claim.topic_id:
        raise ConfigError(
            f"group {claim.group} has read partition {claim.partition} of another topic {claim.topic} (id "
            f"{claim.topic_id}, this one is {topic_id}): it is on another server, or was deleted and made anew, and "
            "offsets mean nothing here; correct the bus's address, or take another bus.redis.consumer_group"
        )
