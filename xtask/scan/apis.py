"""Requests that fit the OpenAPI documents of dispatcher and tunnel server, and requests that do not, by schemathesis.

Found is: a server error, a status, a type or a body that the document does not have. What the API itself refuses is
no finding.
"""

import base64
import json
import ssl
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
# Each operation; enough for every kind of value once, and quick.
EXAMPLES = 40
# `changes` and `events` hold their answers back by design; they have tests of their own.
HELD_BACK = r"/(changes|events)$"


def basic(user, password):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def account(api):
    """A dispatcher account, made by the operator."""
    request = urllib.request.Request(
        f"{api['url']}/api/v1/accounts",
        method="POST",
        headers={"Authorization": f"Bearer {api['operator_token']}", "Content-Type": "application/json"},
        data=json.dumps({"name": "scan"}).encode(),
    )
    context = ssl.create_default_context(cafile=api["ca"])
    with urllib.request.urlopen(request, context=context) as answer:
        return basic("scan", json.load(answer)["password"])


def scan(what, url, authorization, *more):
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/api/openapi.json",
        "--checks", CHECKS, "--max-examples", str(EXAMPLES), "--phases", "examples,coverage,fuzzing", "--seed", "1",
        "--generation-database", "none", "--request-timeout", "30", "--no-color", "--warnings", "off",
        "--exclude-path-regex", HELD_BACK, "--header", f"Authorization:{authorization}", *more,
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as cache:  # it keeps one where it is started
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cache)
    if done.returncode != 0:
        print(done.stdout, done.stderr, sep="\n")
        sys.exit(f"schemathesis has found something at the {what}")
    print(f"{what}: {[line for line in done.stdout.splitlines() if 'passed' in line or 'cases' in line]}")


def main():
    server = json.loads(sys.argv[1])
    dispatcher, tunnel = server["dispatcher_api"], server["tunnel_api"]
    trust = ["--tls-verify", dispatcher["ca"]]
    scan("dispatcher, for the operator", dispatcher["url"], f"Bearer {dispatcher['operator_token']}",
         "--include-path-regex", "/(accounts|attempts)", *trust)  # fmt: skip
    scan("dispatcher, for an account", dispatcher["url"], account(dispatcher),
         "--include-path-regex", "/registrations", *trust)  # fmt: skip
    scan("tunnel server", tunnel["url"], basic(tunnel["user"], tunnel["password"]))


main()
