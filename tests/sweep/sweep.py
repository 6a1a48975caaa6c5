"""Walk the architectures of transformers, torchvision and timm, and write down which of them are explained correctly.

``python tests/sweep/sweep.py --out docs/supported-models.md`` runs all of it, ``--only 'causal-lm/llama*'`` a part.
Every architecture is checked by a worker process, which may crash, hang or run out of memory without taking others
along. Results go to a file, one JSON line each, tracebacks included: a sweep that was stopped goes on from there.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]
MEMORY = 6 * 2**30


class Worker:
    """A process that checks one case after the other, and is started again after a crash."""

    def __init__(self, timeout: float) -> None:
        self.timeout, self.process, self.used = timeout, None, False

    def start(self) -> None:
        """Start the process, and wait until it has imported what it needs."""
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.process.stdout.readline()

    def stop(self) -> int | None:
        """End the process; return its exit code if it has ended by itself."""
        if self.process is None:
            return None
        code = self.process.poll()
        self.process.kill()
        self.process.communicate()
        self.process, self.used = None, False
        return code

    def check(self, case: str) -> dict:
        """Return the result of a case."""
        if self.process is None:
            self.start()
        begin = time.monotonic()
        self.process.stdin.write(case + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], self.timeout)
        line = self.process.stdout.readline() if ready else ""
        if line:
            result, used, self.used = json.loads(line), self.used, True
            if result.pop("worn"):
                self.stop()
            if used and "allocate memory" in result.get("note", ""):
                # cases before it may hold what it lacks
                self.stop()
                return self.check(case)
            return result
        code = self.stop()
        note = (
            f"took longer than {self.timeout:.0f} s"
            if time.monotonic() - begin >= self.timeout
            else f"crashed ({code})"
        )
        return {"case": case, "status": "cannot be built", "note": note}


def work() -> None:
    """Check the cases that come in on standard input, each on its line."""
    import resource

    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    from sweep.cases import run

    print("ready", file=out, flush=True)
    for line in sys.stdin:
        result = run(line.strip())
        gc.collect()
        print(json.dumps(result | {"worn": resident() > MEMORY / 3}), file=out, flush=True)


def resident() -> int:
    """Return the bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def sweep(cases: list[str], results: Path, jobs: int, timeout: float) -> None:
    """Check every case that has no result yet, with several workers, and append the results to a file."""
    done = {json.loads(line)["case"] for line in results.read_text().splitlines()} if results.exists() else set()
    waiting: queue.Queue[str] = queue.Queue()
    for case in cases:
        if case not in done:
            waiting.put(case)
    count, lock, start = waiting.qsize(), threading.Lock(), time.monotonic()

    def loop() -> None:
        worker = Worker(timeout)
        while True:
            try:
                case = waiting.get_nowait()
            except queue.Empty:
                break
            result = worker.check(case)
            with lock:
                with results.open("a") as file:
                    print(json.dumps(result), file=file)
                left = waiting.qsize()
                print(f"[{count - left}/{count} {time.monotonic() - start:4.0f} s] {line_of(result)}", flush=True)
        worker.stop()

    threads = [threading.Thread(target=loop) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def line_of(result: dict) -> str:
    """Return a line of progress."""
    leak = f"{result['leak']:.0e}" if "leak" in result else ""
    return f"{result['case']:<50} {result['status']:<16} {leak:>6} {result.get('note', '')[:110]}"


def main() -> None:
    """Run the sweep and write its table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--only", default="*", help="pattern of the cases to run, such as 'timm/*'")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    parser.add_argument("--timeout", type=float, default=120, help="seconds that one architecture may take")
    parser.add_argument("--results", type=Path, default=Path("sweep.jsonl"), help="file that results are appended to")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work()
        return
    from sweep.cases import all_cases

    cases = [case for case in all_cases() if fnmatch.fnmatchcase(case, options.only)]
    sweep(cases, options.results, options.jobs, options.timeout)
    if options.out:
        from sweep.report import report

        options.out.write_text(report(options.results, cases))


if __name__ == "__main__":
    main()
