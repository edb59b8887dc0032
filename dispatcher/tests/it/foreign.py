"""A camera of another make: ONVIF Uplink and Security on Python's own TLS and hyper's `h2`, none of Homing's code.

It reads how it is to behave from the JSON file that is its only argument, phones home, answers what it is asked, dials
where SetUplink says, and prints what happens, one JSON object a line. It ends when its standard input does.

It is stricter than most cameras about what it is told (order of elements, references that must exist), and has every
quirk that a test names under "quirks".
"""

import base64, datetime, hashlib, html, json, os, socket, ssl, struct, sys, threading, time
import xml.etree.ElementTree as ElementTree
from urllib.parse import urlsplit

import h2.config, h2.connection, h2.events, h2.exceptions, h2.settings

SOAP_12, SOAP_11 = "http://www.w3.org/2003/05/soap-envelope", "http://schemas.xmlsoap.org/soap/envelope/"
DEVICE, SECURITY = "http://www.onvif.org/ver10/device/wsdl", "http://www.onvif.org/ver10/advancedsecurity/wsdl"
UPLINK, MEDIA2 = "http://www.onvif.org/ver10/uplink/wsdl", "http://www.onvif.org/ver20/media/wsdl"
SCHEMA, ERROR = "http://www.onvif.org/ver10/schema", "http://www.onvif.org/ver10/error"
XSI = "http://www.w3.org/2001/XMLSchema-instance"
PROOF_PATH = "/.well-known/homing/oak-proof"
PATHS = {DEVICE: "/onvif/device_service", SECURITY: "/tls", UPLINK: "/up?link=1", MEDIA2: "/stw-cgi/media2"}
OPEN = {"GetSystemDateAndTime", "GetServices", "GetServiceCapabilities"}  # access class PRE_AUTH

printing = threading.Lock()


def tell(event, **details):
    with printing:
        print(json.dumps({"event": event, **details}), flush=True)


class Fault(Exception):
    def __init__(self, code, subcodes, reason, status=400):
        self.code, self.subcodes, self.reason, self.status = code, subcodes, reason, status


# XML: an element is (namespace, name, content, attributes); content is text or a list of elements.


def element(namespace, name, content="", **attributes):
    return namespace, name, content, attributes


def plain(tree):
    """As gSOAP writes: every prefix at the root."""
    prefixes = {SOAP_12: "SOAP-ENV", SOAP_11: "SOAP-ENV", DEVICE: "tds", SECURITY: "tas", UPLINK: "tup",
                MEDIA2: "tr2", SCHEMA: "tt", ERROR: "ter", XSI: "xsi"}

    def write(node, declarations=""):
        namespace, name, content, attributes = node
        name = f"{prefixes[namespace]}:{name}" if namespace else name
        listed = "".join(f' {key}="{html.escape(value)}"' for key, value in attributes.items())
        inner = html.escape(content) if isinstance(content, str) else "\n".join(map(write, content))
        return f"<{name}{declarations}{listed}>{inner}</{name}>"

    used = [SOAP_11 if tree[0] == SOAP_11 else SOAP_12, DEVICE, SECURITY, UPLINK, MEDIA2, SCHEMA, ERROR, XSI]
    declarations = "".join(f' xmlns:{prefixes[namespace]}="{namespace}"' for namespace in used)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + write(tree, declarations)


def nested(tree):
    """Every element declares a default namespace; a byte order mark, comments, instructions, types, CDATA."""

    def write(node):
        namespace, name, content, attributes = node
        listed = "".join(f" {key}='{html.escape(value)}'" for key, value in attributes.items())
        if isinstance(content, str):
            inner = f"<![CDATA[{content}]]>" if content and "]]>" not in content else html.escape(content)
            listed += f" xmlns:xsi='{XSI}' xmlns:xsd='http://www.w3.org/2001/XMLSchema' xsi:type='xsd:string'"
        else:
            inner = "\r\n\t<!-- " + name + " -->" + "".join(map(write, content)) + "\r\n"
        return f"<{name} xmlns='{namespace}'{listed}>{inner}</{name}>"

    return '\ufeff<?xml version="1.0"?><?made by="hand"?><!-- <Envelope/> -->' + write(tree)


def crossed(tree):
    """Prefixes that mean something else than usual, bound anew at every element, and no XML declaration."""
    others = {SOAP_12: "tds", SOAP_11: "tds", DEVICE: "env", SECURITY: "tup", UPLINK: "tas", MEDIA2: "tt",
              SCHEMA: "soap", ERROR: "a"}

    def write(node):
        namespace, name, content, attributes = node
        listed = "".join(f' {key}="{html.escape(value)}"' for key, value in attributes.items())
        inner = html.escape(content) if isinstance(content, str) else " ".join(map(write, content))
        prefix = others[namespace]
        return f'<{prefix}:{name}{listed} xmlns:z="urn:z" xmlns:{prefix}="{namespace}">{inner}</{prefix}:{name}>'

    return "\n " + write(tree) + "\n"


STYLES = {"plain": plain, "nested": nested, "crossed": crossed}


class Digest:
    """The server's half of RFC 7616, with the quirks of those who wrote it from memory."""

    def __init__(self, user, password, quirks):
        self.user, self.password = user, password
        self.algorithms = quirks.get("algorithms", ["SHA-256", "MD5"])
        self.qop, self.once = quirks.get("qop", "auth"), quirks.get("once", False)
        self.one_header, self.style = quirks.get("one_header", False), quirks.get("style", "right")
        self.userhash, self.realm = quirks.get("userhash", False), quirks.get("realm", "AXIS_00408C")
        self.nonces, self.lock = {}, threading.RLock()

    def challenges(self, stale=False):
        nonce = base64.b64encode(os.urandom(18)).decode()
        with self.lock:
            self.nonces[nonce] = 0
        challenges = []
        for algorithm in self.algorithms:
            parts = {"realm": f'"{self.realm}"', "nonce": f'"{nonce}"', "algorithm": algorithm}
            parts["opaque"] = '"b3BhcXVl"'
            if self.qop:
                parts["qop"] = f'"{self.qop}"'
            if self.userhash:
                parts["userhash"] = "true"
            if stale:
                parts["stale"] = "true"
            if self.style == "unquoted":  # what must be quoted is not
                parts.update(qop=self.qop, realm=self.realm, opaque="b3BhcXVl")
                parts["algorithm"] = algorithm.lower()
            if self.style == "quoted":  # what must not be quoted is, and names are in capitals
                parts = {key.upper(): value if value[0] == '"' else f'"{value}"' for key, value in parts.items()}
            if algorithm == "MD5" and self.style == "silent":  # MD5 is what is meant when nothing is said
                del parts["algorithm"]
            challenges.append("Digest " + ", ".join(f"{key}={value}" for key, value in parts.items()))
        return [", ".join(challenges)] if self.one_header else challenges

    def check(self, method, path, authorization):
        """None when it is right, else the challenges."""
        if not authorization or not authorization.startswith("Digest "):
            return self.challenges()
        answer, rest = {}, authorization[7:]
        while rest:
            key, rest = rest.lstrip(", ").split("=", 1)
            if rest.startswith('"'):
                end = rest.index('"', 1)
                value, rest = rest[1:end], rest[end + 1:]
            else:
                value, _, rest = rest.partition(",")
            answer[key.strip()] = value.strip()
        algorithm = answer.get("algorithm", "MD5")
        if algorithm not in self.algorithms:
            return self.challenges()
        make = hashlib.md5 if algorithm == "MD5" else hashlib.sha256
        digest = lambda *parts: make(":".join(parts).encode()).hexdigest()
        named = digest(self.user, self.realm) if self.userhash else self.user
        a1, a2 = digest(self.user, self.realm, self.password), digest(method, path)
        nonce = answer["nonce"]
        if self.qop:
            expected = digest(a1, nonce, answer["nc"], answer["cnonce"], "auth", a2)
        else:
            expected = digest(a1, nonce, a2)
        if answer["username"] != named or answer["response"] != expected or answer["uri"] != path:
            tell("wrong-password", path=path)
            return self.challenges()
        with self.lock:
            if nonce not in self.nonces or (self.once and self.nonces[nonce] > 0):
                return self.challenges(stale=True)
            self.nonces[nonce] = int(answer.get("nc", "1"), 16)
        return None


class WebSocket:
    """Binary frames around a socket, as the client sends them; also inside an HTTP/2 stream, as the server does."""

    def __init__(self, masks):
        self.masks, self.buffer = masks, b""

    def wrap(self, data, opcode=2):
        size = len(data)
        mask = 0x80 if self.masks else 0
        head = bytes([0x80 | opcode, mask | min(size, 126)]) if size < 126 else (
            struct.pack("!BBH", 0x80 | opcode, mask | 126, size) if size < 65536
            else struct.pack("!BBQ", 0x80 | opcode, mask | 127, size))
        if not self.masks:
            return head + data
        key = os.urandom(4)
        return head + key + bytes(byte ^ key[at % 4] for at, byte in enumerate(data))

    def unwrap(self, data):
        """What came in whole frames: (opcode, payload)."""
        self.buffer += data
        frames = []
        while len(self.buffer) >= 2:
            size, at = self.buffer[1] & 0x7F, 2
            if size >= 126:
                more = 2 if size == 126 else 8
                size, at = int.from_bytes(self.buffer[2:2 + more], "big"), 2 + more
            key = b""
            if self.buffer[1] & 0x80:
                key, at = self.buffer[at:at + 4], at + 4
            if len(self.buffer) < at + size:
                break
            payload = self.buffer[at:at + size]
            if key:
                payload = bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))
            frames.append((self.buffer[0] & 0x0F, payload))
            self.buffer = self.buffer[at + size:]
        return frames


class Carrier:
    """What HTTP/2 is carried by: TLS, or a WebSocket on it."""

    def __init__(self, tls, websocket, early):
        self.tls, self.websocket, self.early = tls, websocket, early

    def send(self, data):
        if data:
            self.tls.sendall(self.websocket.wrap(data) if self.websocket else data)

    def receive(self):
        while True:
            data, self.early = self.early or self.tls.recv(65536), b""
            if not data or not self.websocket:
                return data
            payload = b""
            for opcode, content in self.websocket.unwrap(data):
                if opcode == 9:
                    self.tls.sendall(self.websocket.wrap(content, 10))
                elif opcode == 8:
                    return b""
                elif opcode in (0, 2):
                    payload += content
            if payload:
                return payload


class Camera:
    def __init__(self, config):
        self.config, self.quirks = config, config["quirks"]
        self.digest = Digest(config["user"], config["password"], self.quirks.get("digest", {}))
        self.clock_offset = self.quirks.get("clock_offset_s", 0)
        with open(config["certificate"]) as file:
            pem = file.read().split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
        self.certificates = {"factory": ssl.PEM_cert_to_DER_cert(pem)}
        self.policies, self.uplinks, self.lock = {}, {}, threading.Lock()

    # Dialling.

    def now(self):
        return time.time() + self.clock_offset

    def dial(self, address, trusted_pem):
        url = urlsplit(address)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_cert_chain(self.config["certificate"], self.config["key"])
        context.load_verify_locations(cadata=trusted_pem)
        if self.quirks.get("tls_1_2"):
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        tcp = socket.create_connection((url.hostname, url.port), 10)
        tcp.settimeout(30)
        tls = context.wrap_socket(tcp, server_hostname=url.hostname)
        # Python checks by the machine's clock; the camera has its own.
        for certificate in [tls.getpeercert(), *context.get_ca_certs()]:
            begin, end = (ssl.cert_time_to_seconds(certificate[key]) for key in ("notBefore", "notAfter"))
            if not begin <= self.now() <= end:
                tls.close()
                raise ssl.SSLError(f"certificate valid from {certificate['notBefore']}: not by this clock")
        wss = url.scheme == "wss"
        upgrade = ("Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: h2c-reverse\r\n"
                   f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n") if wss else (
                   "Upgrade: h2c-reverse\r\n")
        tls.sendall(f"GET {url.path or '/'} HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: Upgrade\r\n{upgrade}\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            more = tls.recv(4096)
            if not more:
                raise ConnectionError("closed without an answer")
            head += more
        head, early = head.split(b"\r\n\r\n", 1)
        if not head.startswith(b"HTTP/1.1 101"):
            tls.settimeout(1)
            raise ConnectionError((head.split(b"\r\n")[0] + b": " + early).decode())
        return Carrier(tls, WebSocket(masks=True) if wss else None, early)

    def hold(self, name, address, trusted_pem, tries):
        """Keeps an uplink until the other end closes it."""
        for left in reversed(range(tries)):
            try:
                carrier = self.dial(address, trusted_pem)
            except OSError as error:
                tell("failed", to=name, error=str(error))
                if not left:
                    return
                time.sleep(0.2)
                continue
            tell("connected", to=name, address=address, tls=carrier.tls.version())
            try:
                Http2(self, carrier).serve()
            except OSError as error:
                tell("broken", to=name, error=str(error))
            tell("closed", to=name)
            return

    # Answering.

    def answer(self, method, path, headers, body):
        """Status, headers and body for a request."""
        if path == PROOF_PATH:
            tell("asked-for-proof")
            return self.answer_proof()
        if path == "/hello":
            return 200, [("content-type", "text/plain")], b"hello from another make"
        namespace = next((namespace for namespace, known in PATHS.items() if known == path), None)
        if namespace is None or namespace in self.quirks.get("lacks", []):
            return 404, [], b"no such page"
        return self.answer_soap(method, path, headers, body)

    def answer_proof(self):
        page = b"<!DOCTYPE html><html><body>" + b"Welcome to your new camera. " * 200 + b"</body></html>"
        challenge = [("www-authenticate", text) for text in self.digest.challenges()]
        fault = self.render(*self.fault(Fault("Receiver", ["ActionNotSupported"], "what?")), SOAP_12).encode()
        wrong = {"serial": self.config["serial"], "proof": base64.b64encode(bytes(32)).decode()}
        return {
            "404": (404, [], b"no such page"),
            "405": (405, [("allow", "GET")], b""),
            "401": (401, challenge, page),
            "page": (200, [("content-type", "text/html")], page),
            "soap": (500, [("content-type", "application/soap+xml")], fault),
            "wrong": (200, [("content-type", "application/json")], json.dumps(wrong).encode()),
        }[self.quirks.get("proof", "404")]

    def answer_soap(self, method, path, headers, body):
        version = SOAP_11 if self.quirks.get("soap_1_1") else SOAP_12
        challenges = []
        try:
            root = ElementTree.fromstring(body)
            if root.tag != f"{{{SOAP_12}}}Envelope" or headers.get("content-type", "").split(";")[0] != "application/soap+xml":
                raise Fault("Sender", ["WellFormed"], "not SOAP 1.2")
            ask = root.find(f"{{{SOAP_12}}}Body")[0]
            namespace, name = ask.tag[1:].split("}")
            if name not in OPEN and not self.quirks.get("open"):
                if self.quirks.get("username_token"):
                    raise Fault("Sender", ["NotAuthorized"], "Sender not Authorized")
                challenges = self.digest.check(method, path, headers.get("authorization")) or []
                if challenges:
                    raise Fault("Sender", ["NotAuthorized"], "Sender not Authorized", 401)
            tell("call", name=name)
            handler = getattr(self, "on_" + name, None)
            if handler is None or PATHS[namespace] != path:
                raise Fault("Receiver", ["ActionNotSupported"], f"{name} is not supported here", 500)
            content, status = element(namespace, name + "Response", handler(ask, namespace)), 200
        except Fault as fault:
            content, status = self.fault(fault)[0], fault.status
            tell("fault", reason=fault.reason, status=status)
        kind = "text/xml" if version == SOAP_11 else "application/soap+xml"
        headers = [("content-type", f"{kind}; charset=utf-8")] + [("www-authenticate", text) for text in challenges]
        return status, headers, self.render(content, version).encode()

    def render(self, content, version):
        tree = element(version, "Envelope", [element(version, "Header", []), element(version, "Body", [content])])
        return STYLES[self.quirks.get("soap", "plain")](tree)

    def fault(self, fault):
        if self.quirks.get("soap_1_1"):
            code = f"ter:{fault.subcodes[0]}" if fault.subcodes else fault.code
            return [element(SOAP_11, "Fault", [element("", "faultcode", code), element("", "faultstring", fault.reason)])]
        inner = []
        for name in reversed(fault.subcodes):
            inner = [element(SOAP_12, "Subcode", [element(SOAP_12, "Value", "ter:" + name), *inner])]
        return [element(SOAP_12, "Fault", [
            element(SOAP_12, "Code", [element(SOAP_12, "Value", "SOAP-ENV:" + fault.code), *inner]),
            element(SOAP_12, "Reason", [element(SOAP_12, "Text", fault.reason, **{"xml:lang": "en"})]),
        ])]

    @staticmethod
    def fields(ask, namespace, allowed):
        """The children of an element by name; they must stand in the order of the schema."""
        names = []
        for child in ask:
            own, name = child.tag[1:].split("}")
            if own != namespace or name not in allowed or (names and allowed.index(name) < allowed.index(names[-1])):
                raise Fault("Sender", ["InvalidArgs"], f"{name} is not expected here")
            names.append(name)
        return {name: [child for child in ask if child.tag == f"{{{namespace}}}{name}"] for name in names}

    def on_GetDeviceInformation(self, ask, namespace):
        values = {"Manufacturer": "Another & Sons", "Model": "Dome <1>", "FirmwareVersion": "7.1",
                  "SerialNumber": self.quirks.get("tells_serial", self.config["serial"]), "HardwareId": "9"}
        return [element(DEVICE, name, value) for name, value in values.items()]

    def on_GetServices(self, ask, namespace):
        base = {"absolute": "http://192.168.0.90:8080", "own-host": "https://[fe80::1]", "path": "", "bare": ""}[
            self.quirks.get("xaddr", "absolute")]
        services = []
        for known, path in PATHS.items():
            if known in self.quirks.get("lacks", []):
                continue
            path = path.lstrip("/") if self.quirks.get("xaddr") == "bare" else path
            capabilities = self.capabilities(known)
            told = [element(DEVICE, "Capabilities", [capabilities])] if capabilities else []
            version = [element(SCHEMA, "Major", "26"), element(SCHEMA, "Minor", "6")]
            services.append(element(DEVICE, "Service", [element(DEVICE, "Namespace", known), element(DEVICE, "XAddr", base + path),
                                                        *told, element(DEVICE, "Version", version)]))
        return services

    def capabilities(self, namespace):
        if namespace == UPLINK and "uplink_capabilities" in self.quirks:
            return element(UPLINK, "Capabilities", "", **self.quirks["uplink_capabilities"])
        if namespace == MEDIA2 and not self.quirks.get("no_rtsp"):
            streaming = element(MEDIA2, "StreamingCapabilities", "", RTSPWebSocketUri="ws://192.168.0.90/rtsp")
            return element(MEDIA2, "Capabilities", [streaming])
        return None

    def on_GetServiceCapabilities(self, ask, namespace):
        return [self.capabilities(namespace) or element(namespace, "Capabilities")]

    def on_GetSystemDateAndTime(self, ask, namespace):
        now = datetime.datetime.fromtimestamp(self.now(), datetime.timezone.utc)
        number = lambda **values: [element(SCHEMA, name, str(value)) for name, value in values.items()]
        utc = [element(SCHEMA, "Time", number(Hour=now.hour, Minute=now.minute, Second=now.second)),
               element(SCHEMA, "Date", number(Year=now.year, Month=now.month, Day=now.day))]
        return [element(DEVICE, "SystemDateAndTime", [
            element(SCHEMA, "DateTimeType", "Manual"), element(SCHEMA, "DaylightSavings", "true"),
            element(SCHEMA, "TimeZone", [element(SCHEMA, "TZ", "CET-1CEST,M3.5.0,M10.5.0/3")]),
            element(SCHEMA, "UTCDateTime", utc)])]

    def on_SetSystemDateAndTime(self, ask, namespace):
        if self.quirks.get("clock_locked"):
            raise Fault("Receiver", ["ActionNotSupported"], "the clock is locked", 500)
        fields = self.fields(ask, DEVICE, ["DateTimeType", "DaylightSavings", "TimeZone", "UTCDateTime"])
        time_, date = fields["UTCDateTime"][0]
        hour, minute, second = (int(child.text) for child in time_)
        year, month, day = (int(child.text) for child in date)
        told = datetime.datetime(year, month, day, hour, minute, second, tzinfo=datetime.timezone.utc)
        self.clock_offset = told.timestamp() - time.time()
        tell("clock-set", by=fields["DateTimeType"][0].text, summer=fields["DaylightSavings"][0].text)
        return []

    def on_GetAllCertificates(self, ask, namespace):
        with self.lock:
            return [element(SECURITY, "Certificate", [
                element(SECURITY, "CertificateID", name), element(SECURITY, "KeyID", "key of " + name),
                element(SECURITY, "CertificateContent", base64.encodebytes(content).decode())])
                for name, content in self.certificates.items()]

    def on_UploadCertificate(self, ask, namespace):
        fields = self.fields(ask, SECURITY, ["Certificate", "Alias", "KeyAlias", "PrivateKeyRequired"])
        with self.lock:
            name = f"certificate {len(self.certificates)}"
            self.certificates[name] = base64.b64decode(fields["Certificate"][0].text)
        return [element(SECURITY, "CertificateID", name), element(SECURITY, "KeyID", "key of " + name)]

    def on_GetAllCertPathValidationPolicies(self, ask, namespace):
        anchors = lambda names: [element(SECURITY, "TrustAnchor", [element(SECURITY, "CertificateID", name)]) for name in names]
        return [element(SECURITY, "CertPathValidationPolicy", [
            element(SECURITY, "CertPathValidationPolicyID", name), element(SECURITY, "Parameters", []), *anchors(known)])
            for name, known in self.policies.items()]

    def on_CreateCertPathValidationPolicy(self, ask, namespace):
        fields = self.fields(ask, SECURITY, ["Alias", "Parameters", "TrustAnchor"])
        anchors = [anchor[0].text for anchor in fields["TrustAnchor"]]
        with self.lock:
            if len(fields["Parameters"]) != 1 or not all(anchor in self.certificates for anchor in anchors):
                raise Fault("Sender", ["InvalidArgVal", "CertificateID"], "no such certificate")
            name = f"policy {len(self.policies)}"
            self.policies[name] = anchors
        return [element(SECURITY, "CertPathValidationPolicyID", name)]

    def on_GetUplinks(self, ask, namespace):
        return [element(UPLINK, "Configuration", [element(UPLINK, "RemoteAddress", address), element(UPLINK, "UserLevel", "Operator"),
                                                  element(UPLINK, "Status", "Connected")]) for address in self.uplinks]

    def on_SetUplink(self, ask, namespace):
        fields = self.fields(ask[0], UPLINK, ["RemoteAddress", "CertificateID", "UserLevel", "Status",
                                              "CertPathValidationPolicyID", "AuthorizationServer", "Error"])
        address, certificate = fields["RemoteAddress"][0].text, fields["CertificateID"][0].text
        policy = fields["CertPathValidationPolicyID"][0].text
        protocols = self.quirks.get("uplink_capabilities", {}).get("Protocols", "https wss").split()
        if urlsplit(address).scheme not in protocols:
            raise Fault("Sender", ["InvalidArgs", "ProtocolNotSupported"], "this protocol is not supported")
        if certificate != "factory" or policy not in self.policies:
            raise Fault("Sender", ["InvalidArgVal", "CertificateID"], "no such certificate or policy")
        if address not in self.uplinks and len(self.uplinks) >= self.quirks.get("max_uplinks", 4):
            raise Fault("Receiver", ["Action", "MaxUplinks"], "there is no room for another uplink", 500)
        self.uplinks[address] = policy
        trusted = "".join(ssl.DER_cert_to_PEM_cert(self.certificates[name]) for name in self.policies[policy])
        tell("uplink-set", address=address)
        threading.Thread(target=self.hold, args=("server", address, trusted, 20), daemon=True).start()
        return []

    def on_DeleteUplink(self, ask, namespace):
        if self.uplinks.pop(ask[0].text, None) is None:
            raise Fault("Sender", ["InvalidArgVal", "Address"], "no such uplink")
        return []


class Http2:
    """The server's end of HTTP/2 on an uplink."""

    def __init__(self, camera, carrier):
        self.camera, self.carrier = camera, carrier
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self.connection = h2.connection.H2Connection(config)
        codes = h2.settings.SettingCodes
        values = {codes.ENABLE_CONNECT_PROTOCOL: 1, codes.MAX_CONCURRENT_STREAMS: 16}
        self.connection.local_settings = h2.settings.Settings(client=False, initial_values=values)
        self.requests, self.sockets = {}, {}

    def serve(self):
        self.connection.initiate_connection()
        while True:
            self.carrier.send(self.connection.data_to_send())
            data = self.carrier.receive()
            if not data:
                return
            for event in self.connection.receive_data(data):
                if isinstance(event, h2.events.ConnectionTerminated):
                    self.carrier.send(self.connection.data_to_send())
                    return
                self.handle(event)

    def handle(self, event):
        stream = getattr(event, "stream_id", None)
        if isinstance(event, h2.events.RequestReceived):
            headers = dict(event.headers)
            if headers.get(":protocol") == "websocket":
                self.open_websocket(stream, headers)
            else:
                self.requests[stream] = (headers, bytearray())
        elif isinstance(event, h2.events.DataReceived):
            self.connection.acknowledge_received_data(event.flow_controlled_length, stream)
            if stream in self.sockets:
                self.speak_rtsp(stream, event.data)
            elif stream in self.requests:
                self.requests[stream][1].extend(event.data)
        elif isinstance(event, h2.events.StreamEnded) and stream in self.requests:
            headers, body = self.requests.pop(stream)
            status, answer, content = self.camera.answer(headers[":method"], headers[":path"], headers, bytes(body))
            self.respond(stream, status, answer, content)
        elif isinstance(event, h2.events.StreamEnded) and stream in self.sockets:
            del self.sockets[stream]
            self.connection.end_stream(stream)

    def respond(self, stream, status, headers, content):
        piece = self.camera.quirks.get("piece", 16_000)
        try:
            self.connection.send_headers(stream, [(":status", str(status)), *headers], end_stream=not content)
            for at in range(0, len(content), piece):
                self.connection.send_data(stream, content[at:at + piece], end_stream=at + piece >= len(content))
                if piece < 100:  # each in a packet of its own, an empty one now and then
                    self.carrier.send(self.connection.data_to_send())
        except h2.exceptions.StreamClosedError:
            pass  # they have seen enough

    def open_websocket(self, stream, headers):
        if headers[":path"] != "/rtsp" or self.camera.quirks.get("no_rtsp"):
            return self.respond(stream, 404, [], b"no RTSP here")
        self.sockets[stream] = WebSocket(masks=False)
        self.connection.send_headers(stream, [(":status", "200"), ("sec-websocket-protocol", "rtsp.onvif.org")])

    def speak_rtsp(self, stream, data):
        for opcode, payload in self.sockets[stream].unwrap(data):
            if opcode == 2 and payload.startswith(b"OPTIONS"):
                answer = b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nPublic: DESCRIBE, SETUP, PLAY, TEARDOWN\r\n\r\n"
                self.connection.send_data(stream, self.sockets[stream].wrap(answer))


def main():
    with open(sys.argv[1]) as file:
        config = json.load(file)
    camera = Camera(config)
    with open(config["dispatcher_trust"]) as file:
        trust = file.read()
    threading.Thread(target=camera.hold, args=("dispatcher", config["dispatcher"], trust, 1), daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
