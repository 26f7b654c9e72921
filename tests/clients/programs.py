"""Command lines that are installed beside this Python."""

import json
import os
import pathlib
import subprocess
import sys


def run(program, *arguments, **environment):
    """Runs one without input; what it prints. The end of that is told where it fails."""
    command = [pathlib.Path(sys.executable).with_name(program), *map(str, arguments)]
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, f"{program} ended with {done.returncode}:\n{done.stdout[-4000:]}"
    return done.stdout


def the_json(folder, pattern):
    """The one JSON file below a folder that fits a pattern."""
    (path,) = pathlib.Path(folder).rglob(pattern)
    return json.loads(path.read_text())
