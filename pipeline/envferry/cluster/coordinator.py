"""A program that places jobs on a Dask cluster and says what becomes of them, line by line.

`python -m envferry.cluster.coordinator REQUEST`. A process of its own, because Dask's messages are
pickles: who controls a worker or the scheduler can run code here. So no key is in this process, and
what it says is JSON, which the client checks against the registry.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
import warnings
from collections import Counter, deque
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import msgspec
from distributed import Client, Future, KilledWorker, LocalCluster, Security, as_completed

from envferry import process
from envferry.base.json import decode_json
from envferry.cluster.address import is_private
from envferry.cluster.job import failure_of
from envferry.cluster.messages import BuildEvent, BuildJob, Cluster, ClusterRequest, JobAnswer
from envferry.cluster.task import STARTED, TOPIC, JobDiedError, run_job
from envferry.errors import (
    EXIT_INTERRUPTED,
    HostError,
    PipelineError,
    StoreError,
    ToolFailed,
    UsageError,
)
from envferry.names import current_platform
from envferry.worker_process import end_with_caller

if TYPE_CHECKING:
    from collections.abc import Iterator

RETRIES = 2
"""How often a job is run again whose program was killed."""
BLAMED = 5
"""How often the scheduler is given a job that Dask blames for dead workers on which it waited."""
LOOK_SECONDS = 1.0
# Without routes the servers of scheduler and workers show nothing over HTTP.
NO_PAGES: dict[str, object] = {
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.scheduler.dashboard.status.task-stream-length": 0,
}
ANYWHERE_ON_LOOPBACK = "127.0.0.1:0"
AGAIN = "run the command again: what is in the registry already is not sent twice"


class SchedulerLost(StoreError):
    """The connection to the scheduler ended before all jobs were done."""


def lost(cluster: Cluster) -> SchedulerLost:
    """Describe the end of the connection."""
    return SchedulerLost(
        f"the scheduler {cluster.scheduler or 'of this machine'} is gone", hint=AGAIN
    )


def say(event: BuildEvent) -> None:
    """Write one line, whole, from any thread."""
    with _speaking:
        sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
        sys.stdout.flush()


_speaking = threading.Lock()


@contextmanager
def connected(cluster: Cluster) -> Iterator[Client]:
    """Yield a client of the scheduler, or of workers in this process."""
    if not cluster.scheduler:
        resources = {"build": 1, current_platform(): 1}
        with (
            dask.config.set(NO_PAGES),
            LocalCluster(
                n_workers=cluster.workers,
                threads_per_worker=1,
                # Builds are programs of their own: workers are threads, without ports to attack.
                processes=False,
                # 0 switches the limit off: builds are other processes, and Dask would measure this
                # one.
                memory_limit=0,
                resources=resources,
                dashboard_address=ANYWHERE_ON_LOOPBACK,
                worker_dashboard_address=ANYWHERE_ON_LOOPBACK,
            ) as local,
            Client(local) as client,
        ):
            yield client
        return
    try:
        client = Client(cluster.scheduler, security=security_for(cluster.scheduler))
    except (OSError, TimeoutError, ValueError) as error:
        message = f"the scheduler {cluster.scheduler} does not answer: {error}"
        raise StoreError(message, hint="check that it runs, and that its TLS files fit") from error
    with client:
        yield client


def security_for(address: str) -> Security | None:
    """Return the TLS files that Dask's own settings name; raise UsageError when one is missing."""
    if not address.startswith("tls:"):
        return None
    security = Security(require_encryption=True)
    fields = {
        "ca-file": security.tls_ca_file,
        "client.cert": security.tls_client_cert,
        "client.key": security.tls_client_key,
    }
    missing = [f"distributed.comm.tls.{name}" for name, value in fields.items() if not value]
    if missing:
        message = f"no TLS files for {address}: Dask's settings lack {', '.join(missing)}"
        hint = (
            "set them in ~/.config/dask/distributed.yaml, or DASK_DISTRIBUTED__COMM__TLS__CA_FILE"
        )
        raise UsageError(message, hint=hint)
    return security


def check_versions(client: Client) -> None:
    """Raise UsageError unless every worker has this envferry; warn of other differences."""
    # `get_versions` warns of what is different, and stderr is not what the client reads.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = client.get_versions(check=True, packages=["envferry"])
    ours = found["client"]["packages"]["envferry"]
    for worker, facts in found["workers"].items():
        version = facts["packages"].get("envferry")
        if version != ours:
            has = f"envferry {version}" if version else "no envferry"
            message = f"the worker {worker} has {has}, expected {ours}"
            hint = f'run `pip install "envferry[build,dask]=={ours}"` there'
            raise UsageError(message, hint=hint)
    for one in caught:
        say(BuildEvent(kind="warning", text=str(one.message)))


def require_private(client: Client) -> None:
    """Raise UsageError where a network reaches the scheduler or a worker without TLS.

    A scheduler may be reached here by loopback and listen on every address.
    """
    found = client.scheduler_info()
    if not is_private(found["address"]):
        message = f"the scheduler can be reached without TLS, at {found['address']}"
        hint = "start scheduler and workers with TLS, or with `--host 127.0.0.1`"
        raise UsageError(message, hint=hint)
    for address in found["workers"]:
        if not is_private(address):
            message = f"the worker {address} is another machine, and not reached by TLS"
            raise UsageError(message, hint="start scheduler and workers with TLS")


class Coordinator(msgspec.Struct):
    """The jobs of a release, on a cluster."""

    client: Client
    request: ClusterRequest
    futures: dict[str, Future] = msgspec.field(default_factory=dict)
    begun: Counter[str] = msgspec.field(default_factory=Counter)
    """How often each job began on a worker."""
    given: Counter[str] = msgspec.field(default_factory=Counter)
    """How often each job was given to the scheduler."""
    over: threading.Event = msgspec.field(default_factory=threading.Event)

    def run(self) -> None:
        """Submit every job, and say what becomes of each."""
        self.client.subscribe_topic(TOPIC, self.handle_event)
        waiting = deque(self.request.jobs)
        jobs = {}
        completed = as_completed()

        def submit_next() -> None:
            if waiting:
                job = waiting.popleft()
                future = self.submit(job)
                jobs[future.key] = job
                completed.add(future)

        for _ in range(self.at_once()):
            submit_next()
        threading.Thread(target=self.give_up_waiting, daemon=True).start()
        for future in completed:
            job = jobs[future.key]
            if self.futures.pop(job.key, None):  # else it was cancelled here
                answer = self.answer_of(future, job.key)
                if answer is None:
                    waiting.appendleft(job)
                else:
                    say(BuildEvent(kind="answer", key=job.key, answer=answer))
                    if answer.failure and self.request.cluster.fail_fast:
                        waiting.clear()
                        self.cancel()
            # A wanted result is computed again when the worker that keeps it in its memory dies.
            future.release()
            submit_next()
        self.over.set()

    def at_once(self) -> int:
        """Return how many jobs the scheduler may have.

        All, unless the release ends at the first failure: a worker begins what the scheduler has
        before this process learns of that failure.
        """
        if not self.request.cluster.fail_fast:
            return len(self.request.jobs)
        workers = self.client.scheduler_info()["workers"].values()
        return max(1, sum(int(one["resources"].get("build", 0)) for one in workers))

    def submit(self, job: BuildJob) -> Future:
        """Give a job to the scheduler."""
        self.given[job.key] += 1
        future = self.futures[job.key] = self.client.submit(
            run_job,
            msgspec.json.encode(job),
            # A new key each time: for one that it knows, Dask would return the old result.
            key=f"envferry-{job.key}-{os.urandom(4).hex()}",
            pure=False,
            retries=RETRIES,
            resources={"build": 1, job.platform: 1},
        )
        return future

    def handle_event(self, event: tuple[float, Any]) -> None:
        """Pass on what a worker says of its job."""
        _, text = event
        found = decode_json(str(text).encode(), BuildEvent)
        self.begun[found.key] += found.stage == STARTED
        say(BuildEvent(kind="stage", key=found.key, stage=found.stage, worker=found.worker))

    def answer_of(self, future: Future, key: str) -> JobAnswer | None:
        """Return a job's answer, or None if it is to be given to the scheduler again.

        Raises SchedulerLost when it cannot be known.
        """
        try:
            return decode_json(future.result(), JobAnswer)
        except (CancelledError, TimeoutError, OSError) as error:
            raise lost(self.request.cluster) from error
        except KilledWorker as error:
            died = error.allowed_failures + 1
            # Dask counts the workers on which a job was, also those on which it only waited.
            if self.begun[key] < died and self.given[key] < BLAMED:
                return None
            last = error.last_worker.address
            message = f"{died} workers died during this job, the last one {last}"
            message += "; it may not be the cause"
            return JobAnswer(failure=failure_of(ToolFailed(message, hint=AGAIN)))
        except JobDiedError as error:
            return JobAnswer(failure=failure_of(ToolFailed(str(error), hint=AGAIN)))
        except Exception as error:  # noqa: BLE001  (whatever a worker raised: a fault there)
            message = f"a worker failed: {type(error).__name__}: {error}"
            return JobAnswer(failure=failure_of(ToolFailed(message, hint="look at its log")))

    def cancel(self) -> None:
        """Cancel what has not begun; what runs on a worker elsewhere goes on there to its end."""
        waiting, self.futures = list(self.futures.values()), {}
        self.client.cancel(waiting)

    def give_up_waiting(self) -> None:
        """Fail the jobs that no worker could do for as long as the request allows."""
        needed = {job.platform for job in self.request.jobs}
        timeout = self.request.cluster.worker_timeout
        seen = dict.fromkeys(needed, time.monotonic())
        while not self.over.wait(LOOK_SECONDS):
            try:
                workers = self.client.scheduler_info()["workers"].values()
            except (OSError, TimeoutError, CancelledError, RuntimeError):
                return  # `answer_of` says so
            for platform in needed:
                if any({"build", platform} <= {*one["resources"]} for one in workers):
                    seen[platform] = time.monotonic()
                elif time.monotonic() - seen[platform] > timeout:
                    # Counted from the beginning afterwards: jobs that are
                    # submitted later may wait as long.
                    self.fail_platform(platform)
                    seen[platform] = time.monotonic()

    def fail_platform(self, platform: str) -> None:
        """Fail what waits for a platform that no worker has."""
        resources = f"`build=1 {platform}=1`"
        message = f"no worker has the resources {resources}: waited as long as allowed"
        failure = failure_of(HostError(message, hint=f"start one: --resources {resources}"))
        for job in self.request.jobs:
            if job.platform == platform and (future := self.futures.pop(job.key, None)):
                say(BuildEvent(kind="answer", key=job.key, answer=JobAnswer(failure=failure)))
                # Popped before: `run` takes what is not in `futures` for cancelled here.
                self.client.cancel([future])


def main() -> int:
    """Do what the request says; return the exit status."""
    # From a file: stdin only tells whether the caller is still there.
    request = decode_json(Path(sys.argv[1]).read_bytes(), ClusterRequest)
    try:
        with connected(request.cluster) as client:
            check_versions(client)
            require_private(client)
            coordinator = Coordinator(client, request)
            try:
                coordinator.run()
            except KeyboardInterrupt:
                coordinator.cancel()
                return EXIT_INTERRUPTED
            finally:
                coordinator.over.set()
                # Else closing would wait for the jobs of this machine that go on.
                process.stop_running_programs()
    except PipelineError as error:
        return give_up(error)
    except (CancelledError, TimeoutError, OSError) as error:
        traceback.print_exception(error)
        return give_up(lost(request.cluster))
    return 0


def give_up(error: PipelineError) -> int:
    """Say what ends the whole release; return the exit status."""
    say(BuildEvent(kind="failure", failure=failure_of(error)))
    return error.exit_code


if __name__ == "__main__":
    end_with_caller()
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads that wait for jobs, which end when this process does, are not waited for.
    os._exit(status)
