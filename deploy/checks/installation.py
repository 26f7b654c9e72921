"""Installs a wheel of dist/ in an environment of its own, starts Emberline there and asks it something.

    installation.py dist/emberline-0.1.0-py3-none-manylinux_2_34_x86_64.whl

Nothing but that environment is on PATH, so no compiler is; the model comes from the package index. It prints how long
each step took, and fails where one does.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from pathlib import Path

QUESTION = {"model": "vllm-primary", "max_tokens": 12, "temperature": 0,
            "messages": [{"role": "user", "content": "What is the capital of France?"}]}


def main(wheel):
    began = time.monotonic()

    def note(what):
        print(f"{time.monotonic() - began:6.1f} s  {what}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        programs = Path(folder, "environment/bin")
        venv.create(programs.parent, with_pip=True)
        note("an empty environment")
        # pip's own settings are the user's: they say where the package index is.
        environment = {**os.environ, "PATH": str(programs), "EMBERLINE_CACHE": f"{folder}/cache"}
        subprocess.run([programs / "pip", "install", "--quiet", "--disable-pip-version-check", wheel],
                       env=environment, check=True)
        note("pip install")
        up = subprocess.Popen([programs / "emberline", "up"], cwd=folder, stdout=subprocess.PIPE, text=True, env={
            **environment, "EMBERLINE_LISTEN": "127.0.0.1:0", "EMBERLINE_NATS_LISTEN": "127.0.0.1:0"})
        try:
            found = {}
            for line in up.stdout:
                if match := re.match(r"\s*(URL|API key)\s+(\S+)", line):
                    found[match[1]] = match[2]
                if len(found) == 2:
                    break
            else:
                sys.exit("emberline up ended before it was ready")
            note("emberline up is ready")
            request = urllib.request.Request(f"{found['URL']}/v1/chat/completions", json.dumps(QUESTION).encode(), {
                "content-type": "application/json", "authorization": f"Bearer {found['API key']}"})
            with urllib.request.urlopen(request) as response:
                answer = json.load(response)["choices"][0]["message"]["content"]
            note(f"the answer: {answer!r}")
            if "Paris" not in answer:
                sys.exit("which is wrong")
        finally:
            up.send_signal(signal.SIGINT)
            up.communicate()
        if up.returncode:
            sys.exit(f"emberline up ended with {up.returncode}")
        note("stopped")


if __name__ == "__main__":
    main(*sys.argv[1:])
