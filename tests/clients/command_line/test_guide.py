"""The examples of docs/command-line.md, run by a shell against a daemon in a process of its own."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.support import start_daemon, until

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "command-line.md"

pytestmark = pytest.mark.slow

NOBODY_THERE_YET = 69


def examples() -> Iterator[tuple[str, str]]:
    """Each command line of the guide's examples, and what it prints."""
    for block in re.findall(r"```console\n(.*?)```", GUIDE.read_text(), re.DOTALL):
        for example in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = example.partition("\n")
            yield command, output


def test_the_examples_of_the_guide_are_true(tmp_path: Path) -> None:
    """Every example prints what the guide says, in the order of the guide, and ends well."""
    program = tmp_path / "bin" / "ganglion"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ganglion "$@"\n')
    program.chmod(0o755)
    (tmp_path / "order.json").write_text('{"order": 7}')
    commands = list(examples())
    assert len(commands) > 30
    with start_daemon("--native", "127.0.0.1:0") as daemon, ExitStack() as stack:
        environment = {
            **os.environ,
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "XDG_CONFIG_HOME": "",
            "GANGLION_URL": f"ganglion://127.0.0.1:{daemon.ports['native']}",
        }

        def run(command: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                ["/bin/sh", "-c", command],
                cwd=tmp_path,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )

        def answered(command: str) -> subprocess.CompletedProcess[str] | None:
            result = run(command)
            return None if result.returncode == NOBODY_THERE_YET else result

        servers: list[subprocess.Popen[bytes]] = []
        for command, output in commands:
            if command.endswith("&"):
                server = command.removesuffix("&")
                process = subprocess.Popen(
                    ["/bin/sh", "-c", f"exec {server}"], cwd=tmp_path, env=environment
                )
                servers.append(stack.enter_context(process))
                stack.callback(process.kill)
                continue
            result = until(partial(answered, command), what=command)
            assert result is not None
            assert result.stderr == "", command
            assert result.returncode == 0, command
            assert result.stdout.replace(str(tmp_path), "~").strip() == output.strip(), command
        for each in servers:
            assert each.wait(10) == 0
