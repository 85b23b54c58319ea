"""What progress says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.cli.shared.console import Console, amount_done
from envferry.progress import Expected

if TYPE_CHECKING:
    import pytest


def test_a_note_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Console(as_json=False, is_quiet=False, verbosity=0).note("of \x1b]0;you\x07 others")
    assert capsys.readouterr().err == "note: of \ufffd]0;you\ufffd others\n"


def test_an_amount_without_a_total() -> None:
    assert amount_done(1_200_000, None) == "1.2 MB"


def test_an_amount_of_what_is_known_so_far() -> None:
    expected = Expected(3)
    assert amount_done(0, expected) == "0 B of 0 B and 3 more files"
    expected.learn("a", 3_000_000)
    expected.learn("a", 1)
    assert amount_done(1_000_000, expected) == "1 MB of 3 MB and 2 more files"
    expected.learn("b", 1_000_000)
    assert amount_done(4_000_000, expected) == "4 MB of 4 MB and 1 more file"
    expected.learn("c", 1_000_000)
    assert amount_done(5_000_000, expected) == "5 MB of 5 MB"


def test_what_is_downloaded_again_comes_on_top() -> None:
    expected = Expected(1)
    expected.learn("a", 1_000_000)
    assert amount_done(1_500_000, expected) == "1.5 MB of 1.5 MB"
