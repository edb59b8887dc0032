"""Scans every TLS listener of a running `homing server` with sslyze, and with Python's own TLS for resumption.

Started by `cargo xtask test --only scan` (xtask/src/scan.rs) with one argument, the server's description:

    {"folder": "...", "tls_1_2": false, "listeners": [{"name": "...", "address": "127.0.0.1:1", "ca": "....pem", "devices": true,
     "http": true}]}

Prints a line for each listener, and ends with 1 if anything is not as it must be.
"""

import json
import re
import socket
import ssl
import subprocess
import sys

OLD = ["ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1"]


def make_client_certificate(folder):
    """A device's: self-signed, as any that phones home for the first time."""
    certificate, key = f"{folder}/device.pem", f"{folder}/device.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        + ["-subj", "/CN=camera/serialNumber=00408C702009", "-days", "2", "-out", certificate, "-keyout", key],
        check=True,
        capture_output=True,
    )
    return certificate, key


def sslyze(folder, listener, client):
    out = f"{folder}/sslyze.json"
    command = [sys.executable, "-m", "sslyze", "--mozilla_config=disable", f"--json_out={out}", "--certinfo"]
    command += [f"--certinfo_ca_file={listener['ca']}", "--sslv2", "--sslv3", "--tlsv1", "--tlsv1_1", "--tlsv1_2"]
    command += ["--tlsv1_3", "--compression", "--reneg", "--heartbleed", "--openssl_ccs", "--robot"]
    if listener["http"]:
        command += ["--early_data"]
    if listener["devices"]:
        command += [f"--cert={client[0]}", f"--key={client[1]}"]
    subprocess.run(command + [listener["address"]], check=True, capture_output=True, timeout=120)
    with open(out) as file:
        [scan] = json.load(file)["server_scan_results"]
    return scan


def result(scan, name, faults):
    attempt = scan["scan_result"][name]
    if attempt["status"] != "COMPLETED":
        faults.append(f"{name} was not scanned: {attempt['error_reason']}")
        return None
    return attempt["result"]


def ciphers(scan, version, faults):
    found = result(scan, f"{version}_cipher_suites", faults)
    return [cipher["cipher_suite"]["name"] for cipher in found["accepted_cipher_suites"]] if found else []


def check(scan, by_policy, is_http):
    faults = []
    if scan["scan_status"] != "COMPLETED":
        return [f"not scanned: {scan['connectivity_error_trace'] or scan['scan_status']}"]
    for version in OLD:
        if ciphers(scan, version, faults):
            faults.append(f"speaks {version}")
    newest = ciphers(scan, "tls_1_3", faults)
    if not any("AES_128_GCM" in cipher for cipher in newest):
        faults.append(f"TLS 1.3 with {newest}")
    older = ciphers(scan, "tls_1_2", faults)
    if bool(older) != by_policy:
        faults.append(f"TLS 1.2 is {'on' if older else 'off'}, against the policy")
    safe = [c for c in older if "_ECDHE_" in c and ("_GCM_" in c or "_POLY1305_" in c)]
    if safe != older:
        faults.append(f"unsafe in TLS 1.2: {sorted(set(older) - set(safe))}")
    for name, key in [
        ("heartbleed", "is_vulnerable_to_heartbleed"),
        ("openssl_ccs_injection", "is_vulnerable_to_ccs_injection"),
        ("tls_compression", "supports_compression"),
        ("session_renegotiation", "is_vulnerable_to_client_renegotiation_dos"),
        ("tls_1_3_early_data", "supports_early_data"),
    ]:
        if name == "tls_1_3_early_data" and not is_http:
            continue
        found = result(scan, name, faults)
        if found and found[key]:
            faults.append(name)
    robot = result(scan, "robot", faults)
    if robot and not robot["robot_result"].startswith("NOT_VULNERABLE"):
        faults.append(f"robot: {robot['robot_result']}")
    certificates = result(scan, "certificate_info", faults)
    for deployment in certificates["certificate_deployments"] if certificates else []:
        validations = deployment["path_validation_results"]
        ours = [v for v in validations if "Supplied" in v["trust_store"]["name"] or "Custom" in v["trust_store"]["name"]]
        if not any(v["verified_certificate_chain"] for v in ours):
            faults.append(f"certificate is not trusted by its CA: {[v['validation_error'] for v in ours]}")
        if not deployment["received_chain_has_valid_order"]:
            faults.append("certificate chain is out of order")
        if deployment["verified_chain_has_sha1_signature"]:
            faults.append("SHA-1 in the certificate chain")
    return faults


def takes_early_data(listener):
    """Whether its tickets allow data before the handshake is over (RFC 8446 §4.6.1): sslyze wants an answer in HTTP."""
    command = ["openssl", "s_client", "-connect", listener["address"], "-tls1_3", "-CAfile", listener["ca"], "-ign_eof"]
    said = subprocess.run(command, input=b"GET / HTTP/1.1\r\n\r\n", capture_output=True, timeout=60).stdout.decode()
    sizes = re.findall(r"Max Early Data: (\d+)", said)
    return not sizes or any(int(size) > 0 for size in sizes)


def resumes(listener, client):
    """Whether a second connection goes on with the first one's session, and the server's certificate is checked."""
    context = ssl.create_default_context(cafile=listener["ca"])
    if listener["devices"]:
        context.load_cert_chain(*client)
    host, port = listener["address"].rsplit(":", 1)
    session = None
    for _ in range(2):
        with socket.create_connection((host, int(port)), timeout=10) as tcp:
            with context.wrap_socket(tcp, server_hostname=host, session=session) as tls:
                reused = tls.session_reused
                tls.sendall(b"GET / HTTP/1.1\r\nHost: scan\r\nConnection: close\r\n\r\n")
                while tls.recv(4096):
                    pass
                session = tls.session
    return reused


def main():
    server = json.loads(sys.argv[1])
    client = make_client_certificate(server["folder"])
    failed = False
    for listener in server["listeners"]:
        by_policy = server["tls_1_2"] and listener["devices"]
        faults = check(sslyze(server["folder"], listener, client), by_policy, listener["http"])
        if not listener["http"] and takes_early_data(listener):
            faults.append("tls_1_3_early_data")
        if not resumes(listener, client):
            faults.append("sessions are not resumed")
        failed |= bool(faults)
        policy = "TLS 1.2 and 1.3" if by_policy else "TLS 1.3"
        print(f"{listener['name']:<28} {policy:<16} {'; '.join(faults) or 'ok'}", flush=True)
    sys.exit(failed)


main()
