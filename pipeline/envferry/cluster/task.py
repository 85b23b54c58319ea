"""The task that a cluster's workers run: it starts the program that does a job, and listens.

A worker has envferry installed: what travels is this function's name and a job in JSON.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from distributed import get_worker

from envferry import process
from envferry.base.json import decode_json
from envferry.cluster.messages import BuildEvent, BuildJob
from envferry.config import child_environ

TOPIC = "envferry-release"
STARTED = "started"
"""What a worker says first of a job; what waits on a worker says nothing."""
ERROR_BYTES = 4000


class JobDiedError(Exception):
    """A job's program left no answer: killed, most often for its memory. It may be run again."""


def run_job(data: bytes) -> bytes:
    """Run a job to its end and return its answer; called in a thread of a worker.

    The thread waits for a program, so neither the worker's event loop nor its memory is in the way
    of a build. Raises JobDiedError when the program left no answer.
    """
    job, worker = decode_json(data, BuildJob), get_worker()

    def say(stage: str) -> None:
        event = BuildEvent(kind="stage", key=job.key, stage=stage, worker=str(worker.name))
        worker.log_event(TOPIC, msgspec.json.encode(event).decode())

    say(STARTED)
    with TemporaryDirectory(prefix="envferry-job-") as place:
        request, answer, log = (Path(place, name) for name in ("request", "answer", "log"))
        request.write_bytes(data)
        words = (*process.our_module("envferry.cluster.job"), str(request), str(answer))
        with process.conversation(
            words, log_path=log, cwd=Path(place), env=child_environ()
        ) as job_:
            for stage in job_.lines():
                say(stage)
            status = job_.end()
        # The answer decides, not the exit status (`worker_process.py`).
        if answer.exists():
            return answer.read_bytes()
        said = log.read_bytes()[-ERROR_BYTES:].decode(errors="replace")
    failure = process.failure(["envferry.cluster.job"], status, "", said)
    message = f"{failure.message} (worker {worker.name})"
    raise JobDiedError(message)
