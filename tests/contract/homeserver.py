"""A real Synapse: a process of its own, in its own virtual environment, asked over HTTP."""

import base64
import contextlib
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time

from cases import Answer
from progress import Failed, free_port, install, output

# How long Synapse may take to make its tables, and to finish its background updates.
START_SECONDS = 120
UPDATES_SECONDS = 300


def newest_release():
    """The version that `pip install matrix-synapse` would bring."""
    pip = [f"{install('pip')}/python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    try:
        report = output([*pip, "install", "--dry-run", "--no-deps", "--ignore-installed", "--report", "-", "matrix-synapse"])
    except Failed as failure:
        raise Failed(f"{failure}\nPyPI does not tell which release is the newest; SYNAPSE=1.150.0 names one") from failure
    return json.loads(report)["install"][0]["metadata"]["version"]


class Homeserver:
    """A running one; `with Homeserver(...)` ends it."""

    def __init__(self, release, cluster):
        is_old = [int(number) for number in release.split(".")[:2]] <= [1, 145]
        self.python = f"{install('synapse-old' if is_old else 'synapse', release)}/python"
        self.cluster = cluster
        self.port = free_port()
        self.macaroon_secret = secrets.token_hex(16)
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="media-usage-synapse."))
            self.log = stack.enter_context(open(f"{folder}/log", "w+"))
            with open(f"{folder}/homeserver.yaml", "w") as file:
                # JSON is YAML as well.
                json.dump(self.configuration(folder), file)
            with open(f"{folder}/signing.key", "w") as file:
                file.write(f"ed25519 a_key {base64.b64encode(os.urandom(32)).decode().rstrip('=')}\n")
            # In a session of its own, so that Ctrl-C reaches only this program, which then ends Synapse in order.
            self.process = subprocess.Popen(
                [self.python, "-m", "synapse.app.homeserver", "-c", "homeserver.yaml"],
                cwd=folder, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True,
                # A caller's PGHOST and the like mean another server.
                env={name: value for name, value in os.environ.items() if not name.startswith("PG")},
            )
            stack.callback(self.end)
            self.wait_for("it does not listen", START_SECONDS, self.listens)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self.stack.close()

    def configuration(self, folder):
        """The defaults, but for what a server needs to be on its own."""
        return {
            "server_name": "example.com",
            "listeners": [{
                "port": self.port, "bind_addresses": ["127.0.0.1"], "type": "http", "tls": False, "x_forwarded": False,
                "resources": [{"names": ["client", "federation"], "compress": False}],
            }],
            "database": {
                "name": "psycopg2",
                "args": {
                    "user": "synapse", "dbname": "synapse", "host": self.cluster["socket_dir"],
                    "port": self.cluster["port"], "cp_min": 1, "cp_max": 5,
                },
            },
            "background_updates": {"sleep_enabled": False},
            "macaroon_secret_key": self.macaroon_secret,
            "form_secret": secrets.token_hex(16),
            "signing_key_path": f"{folder}/signing.key",
            "media_store_path": f"{folder}/media",
            "pid_file": f"{folder}/pid",
            "trusted_key_servers": [],
            "report_stats": False,
        }

    def listens(self):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def finish_updates(self, count_updates):
        """Waits until it has no background updates left; returns the seconds that took."""
        start = time.monotonic()
        self.wait_for("its background updates do not finish", UPDATES_SECONDS, lambda: count_updates() == 0)
        return time.monotonic() - start

    def wait_for(self, failure, seconds, condition):
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                failure = "it ended by itself"
            elif time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            self.log.seek(0)
            raise Failed("".join(["Synapse's log:\n", *self.log.readlines()[-40:], f"\nSynapse: {failure}"]))

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def answer(self, case):
        """Sends a case byte for byte, which no HTTP client would do."""
        target = case["path"] if case["query"] is None else f"{case['path']}?{case['query']}"
        body = (case.get("body") or "").encode()
        headers = [["Host", "example.com"], *case["headers"], ["Connection", "close"]]
        if body:
            headers.append(["Content-Length", str(len(body))])
        lines = [f"{case['method']} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "", ""]
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall("\r\n".join(lines).encode() + body)
            response = http.client.HTTPResponse(connection, method=case["method"])
            try:
                response.begin()
                text = response.read().decode()
            except (http.client.HTTPException, OSError, ValueError) as error:
                raise Failed(f"Synapse gave no answer to {case['name']}: {error!r}") from error
            return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, text)
