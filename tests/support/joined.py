"""Several processes that joined each other and run one `mwork` command after another.

To start a process, import JAX, join and trace takes most of a small command's time, so tests that compare several
processes with one share them. Each command is given with all its options, `--coordinator` too, and goes through
`mwork_jax.cli.main`; standard output and error are those of the process, as a user would see them.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from support.paths import ROOT

_TIMEOUT = 900  # seconds for one command


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def environment() -> dict[str, str]:
    """One CPU device in each process, and this checkout."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags), "PYTHONPATH": path}


def joining(port: int, count: int, process: int) -> tuple[str, ...]:
    """The options with which a command is one of several processes."""
    return ("--coordinator", f"localhost:{port}", "--processes", str(count), "--process-id", str(process))


class JoinedProcesses:
    """`count` processes; `run` gives all of them the same command."""

    def __init__(self, count: int, folder: Path):
        """folder: where each process's standard output and error are kept."""
        self.port = free_port()
        self._outputs = [(folder / f"{i}.out", folder / f"{i}.err") for i in range(count)]
        self._read = [[0, 0] for _ in range(count)]
        self._processes = [self._started(*paths) for paths in self._outputs]

    @staticmethod
    def _started(out: Path, err: Path) -> subprocess.Popen[str]:
        with out.open("w") as to_out, err.open("w") as to_err:
            return subprocess.Popen(
                [sys.executable, "-m", "support.joined"],
                stdin=subprocess.PIPE,
                stdout=to_out,
                stderr=to_err,
                env=environment(),
                text=True,
            )

    def run(self, *arguments: object) -> list[tuple[str, str]]:
        """Gives the command to all and waits for them; what each wrote to standard output and to standard error.

        Raises AssertionError where one of them ends, fails or is not done in time.
        """
        done = [out.with_suffix(".done") for out, _ in self._outputs]
        for i, process in enumerate(self._processes):
            done[i].unlink(missing_ok=True)
            command = [*map(str, arguments), *joining(self.port, len(done), i)]
            assert process.stdin is not None
            process.stdin.write(json.dumps({"command": command, "done": str(done[i])}) + "\n")
            process.stdin.flush()
        until = time.monotonic() + _TIMEOUT
        while not all(path.exists() for path in done):
            ended = [i for i, process in enumerate(self._processes) if process.poll() is not None]
            assert not ended, f"process {ended[0]} ended: {self._outputs[ended[0]][1].read_text()[-3000:]}"
            assert time.monotonic() < until, f"not done in {_TIMEOUT} s"
            time.sleep(0.05)
        new = [self._new_output(i) for i in range(len(done))]
        for path, (_, errors) in zip(done, new, strict=True):
            assert path.read_text() == "0", errors[-3000:]
        return new

    def _new_output(self, process: int) -> tuple[str, str]:
        """What a process wrote since the last call."""
        texts = []
        for which, path in enumerate(self._outputs[process]):
            written = path.read_bytes()
            texts.append(written[self._read[process][which] :].decode())
            self._read[process][which] = len(written)
        return texts[0], texts[1]

    def close(self) -> None:
        """Lets them end together; those that do not are killed."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(timeout=300)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _serve() -> None:
    """Runs the commands that come on standard input as lines of JSON; an exit status goes to the file named with it."""
    from mwork_jax.cli import main

    for line in sys.stdin:
        task = json.loads(line)
        status = main(task["command"])
        sys.stdout.flush()
        sys.stderr.flush()
        written = Path(task["done"]).with_suffix(".status")
        written.write_text(str(status))
        written.replace(task["done"])  # whole from the moment it exists


if __name__ == "__main__":
    _serve()
