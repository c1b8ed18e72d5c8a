"""The function behind a Lambda Runtime API (AWS Lambda Developer Guide, "Using the Lambda runtime API")."""

import contextlib
import http.server
import itertools
import json
import os
import queue
import subprocess
import tempfile
import threading
import time

from cases import Answer
from progress import ROOT, Failed, output

HOST = "abcdefghij.execute-api.eu-central-1.amazonaws.com"
# How long a real function has for an invocation, see template.yaml.
TIMEOUT_SECONDS = 28


def binary():
    """The one that FUNCTION_BINARY names, or a fresh debug build."""
    if "FUNCTION_BINARY" in os.environ:
        return os.environ["FUNCTION_BINARY"]
    build = ["cargo", "build", "--locked", "--bins", "--quiet", "--message-format=json-render-diagnostics"]
    messages = map(json.loads, output(build).splitlines())
    return next(message["executable"] for message in messages if message.get("executable"))


class Api(http.server.BaseHTTPRequestHandler):
    """The Runtime API and the Extensions API, as far as the function uses them."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def send(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if "/extension/" in self.path:
            # No events were subscribed to.
            threading.Event().wait()
        event = self.server.events.get()
        self.send(200, json.dumps(event).encode(), {
            "lambda-runtime-aws-request-id": f"8476a536-e9f4-11e8-9739-{next(self.server.numbers):012}",
            "lambda-runtime-deadline-ms": str(int((time.time() + TIMEOUT_SECONDS) * 1000)),
            "lambda-runtime-invoked-function-arn": "arn:aws:lambda:eu-central-1:123456789012:function:synapse-media-usage",
        })

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if "/extension/" in self.path:
            description = {"functionName": "synapse-media-usage", "functionVersion": "$LATEST", "handler": "bootstrap"}
            self.send(200, json.dumps(description).encode(), {"lambda-extension-identifier": "it"})
            return
        self.server.outcomes.put((self.path.rpartition("/")[2], body))
        self.send(202, b'{"status":"OK"}', {})


class Server(http.server.ThreadingHTTPServer):
    """Its threads end with this program, and so do connections that are still open."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Api)
        self.events, self.outcomes, self.numbers = queue.Queue(), queue.Queue(), itertools.count()

    def handle_error(self, *_):
        """The function is killed in the end, which resets its connections."""


class Function:
    """A running one that reads the database of a URL; `with Function(...)` ends it."""

    def __init__(self, database_url):
        self.binary = binary()
        self.database_url = database_url

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self.api = Server()
            threading.Thread(target=self.api.serve_forever, daemon=True).start()
            self.log = stack.enter_context(tempfile.TemporaryFile("w+"))
            self.process = subprocess.Popen(
                [self.binary],
                env={
                    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128",
                    "AWS_LAMBDA_FUNCTION_NAME": "synapse-media-usage",
                    "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
                    "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{self.api.server_port}",
                    "DATABASE_URL": self.database_url,
                },
                stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True,
            )
            stack.callback(self.end)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self.stack.close()

    def end(self):
        self.process.kill()
        self.process.wait()

    def answer(self, case):
        """Sends a case as the kind of event that carries every request."""
        self.api.events.put(event(case))
        deadline = time.monotonic() + TIMEOUT_SECONDS + 10
        while True:
            try:
                kind, body = self.api.outcomes.get(timeout=0.2)
                break
            except queue.Empty:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.log.seek(0)
                    silence = f"The function gave no answer to {case['name']}"
                    raise Failed(f"The function's log:\n{self.log.read()}\n{silence}") from None
        response = json.loads(body)
        if kind != "response":
            raise Failed(f"the function failed at {case['name']}: {response}")
        headers = {name.lower(): value for name, value in response["headers"].items()}
        return Answer(response["statusCode"], headers, response.get("body") or "")


def event(case):
    """An event of API Gateway's HTTP API, payload format 2.0: header names in lower case, repeats joined by a comma, the
    query untouched."""
    headers = {"host": HOST}
    for name, value in case["headers"]:
        name = name.lower()
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": case["path"],
        "rawQueryString": case["query"] or "",
        "headers": headers,
        "requestContext": {
            "accountId": "123456789012",
            "apiId": HOST.partition(".")[0],
            "domainName": HOST,
            "domainPrefix": HOST.partition(".")[0],
            "http": {
                "method": case["method"], "path": case["path"], "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1",
                "userAgent": "contract",
            },
            "requestId": "JKJaXmPLvHcESHA=",
            "routeKey": "$default",
            "stage": "$default",
            "time": "24/Nov/2026:12:00:00 +0000",
            "timeEpoch": 1795521600000,
        },
        "body": case.get("body"),
        "isBase64Encoded": False,
    }
