"""What the parts of `make contract` have in common: other programs, and failures in their way."""

import os
import pathlib
import random
import signal
import socket
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Failed(Exception):
    """Something in the way that the person at the keyboard has to know of."""


def output(command, **options):
    """What a command prints. All that it has started ends with it, also where this program is interrupted meanwhile."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True, **options
    )
    try:
        text, _ = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise
    if process.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))}: failed")
    return text.strip()


def install(*group):
    """The folder of the programs of a group of tests/tools/requirements.txt."""
    return output([ROOT / "tests/tools/venv", *group])


def free_port():
    """Below the range from which systems take the ports of outgoing connections."""
    for port in random.sample(range(15000, 32000), 100):
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise Failed("no free port on 127.0.0.1")
