"""What monitoring learns of a tag that is followed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.base.prometheus import Metric, timestamp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.follow.follow_state import FollowState


def follow_metrics(ref: str, current: str | None, state: FollowState) -> Iterator[Metric]:
    """Yield the metrics of one followed tag; times that are not known are left out."""
    labels = {"ref": ref}
    yield Metric(
        name="envferry_follow_info",
        help="What the tag points to, and what is current.",
        samples=(
            (
                {
                    **labels,
                    "registry": state.registry,
                    "id": state.id,
                    "current": current or "",
                    "waiting": state.waiting,
                    "error": state.error.partition("\n")[0],
                },
                1,
            ),
        ),
    )
    is_current = int(bool(state.id) and state.id == current)
    numbers = (
        ("up_to_date", "1 if what the tag points to is current.", is_current),
        ("waiting", "1 if an update is waiting.", int(bool(state.waiting))),
        ("last_error_code", "The exit code of the last poll.", state.error_code),
        ("last_error_timestamp_seconds", "When the last error was.", timestamp(state.error_at)),
        (
            "last_poll_timestamp_seconds",
            "When the registry last answered.",
            timestamp(state.polled),
        ),
        (
            "installed_timestamp_seconds",
            "When the last update was installed.",
            timestamp(state.installed_at),
        ),
    )
    for name, text, value in numbers:
        samples = ((labels, value),) if value is not None else ()
        yield Metric(name=f"envferry_follow_{name}", help=text, samples=samples)
