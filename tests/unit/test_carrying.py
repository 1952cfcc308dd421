"""The positions that groups have after symbols moved to other partitions."""

from __future__ import annotations

from market_data_core.protocols import Claim, Position
from market_data_pipeline.consumers.carrying import positions_after
from market_data_pipeline.windows.tumbling import FOREVER, NEVER


def claim(partition: int, watermarks: dict[str, int], group: str = "g") -> Claim:
    positions = {
        lane: Position(lane, w, f"{partition}-9", "", f"{partition}-1") for lane, w in watermarks.items()
    }
    return Claim("t", group, partition, 3, "w", positions, [])


def test_each_lane_goes_on_from_its_highest_watermark_in_every_partition() -> None:
    """From the lowest, a partition that was ahead would open a window again that is stored."""
    old = [claim(0, {"": NEVER, "live/a": 10, "live/b": 7}), claim(1, {"": NEVER, "live/a": 90})]
    after = positions_after(old, [("5-0", "1-0"), ("6-0", ""), ("", "")], lanes_remember=True)
    marks = {(p.partition, p.position.lane): p.position.watermark for p in after}
    assert marks == {
        (n, lane): w for n in range(3) for lane, w in {"": NEVER, "live/a": 90, "live/b": 7}.items()
    }
    read = {(p.partition, p.position.read_offset, p.position.restart_offset) for p in after}
    assert read == {(0, "5-0", ""), (1, "6-0", ""), (2, "", "")}
    held = {(p.partition, p.position.lane): p.position.dedupe_offset for p in after}
    assert held[0, "live/a"] == "1-0"
    assert held[0, ""] == "", "the row of the partition itself holds nothing back"


def test_a_lane_that_has_ended_does_not_go_on_and_groups_are_apart() -> None:
    old = [claim(0, {"live/a": 10, "replay/r/a": FOREVER}), claim(0, {"live/a": 99}, "h")]
    after = positions_after(old, [("5-0", "1-0")], lanes_remember=False)
    assert {(p.group, p.position.lane, p.position.watermark, p.position.dedupe_offset) for p in after} == {
        ("g", "live/a", 10, ""),
        ("h", "live/a", 99, ""),
    }
