"""A worker is judged by its answer, however it ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import pytest

from envferry.errors import SpecError, ToolFailed
from envferry.worker_process import Worker, answer_request


class Request(msgspec.Struct, frozen=True):
    """What this module is asked when it runs as a worker."""

    text: str


class Answer(msgspec.Struct, frozen=True):
    """What it says."""

    text: str
    folder: str


def work(request: Request, scratch: Path) -> Answer:
    if request.text == "fail":
        sys.exit("cannot do that")
    if request.text == "die":
        os.abort()
    return Answer(text=request.text.upper(), folder=str(scratch))


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return Worker(module="tests.test_worker_process", scratch=tmp_path)


def test_a_question_is_answered(worker: Worker) -> None:
    answer = worker.ask(Request("hello"), Answer)
    assert answer == Answer(text="HELLO", folder=str(worker.scratch))
    assert worker.ask(Request("again"), Answer).text == "AGAIN"


@pytest.mark.parametrize(("text", "said"), [("fail", "cannot do that"), ("die", "signal 6")])
def test_a_worker_without_an_answer(worker: Worker, text: str, said: str) -> None:
    """An earlier answer does not count."""
    worker.ask(Request("hello"), Answer)
    with pytest.raises(ToolFailed, match=said):
        worker.ask(Request(text), Answer)


def test_whoever_asks_may_explain_it(worker: Worker) -> None:
    picky = Worker(
        module=worker.module,
        scratch=worker.scratch,
        explain=lambda finished: SpecError(f"it said: {finished.stderr.strip()}"),
    )
    with pytest.raises(SpecError, match="it said: cannot do that"):
        picky.ask(Request("fail"), Answer)


if __name__ == "__main__":
    answer_request(Request, work)
