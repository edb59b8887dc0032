"""A device as somebody else would make it: dials PORT, upgrades by CARRIER (native or websocket), answers by Python's h2.

Nothing is shared with ours: TLS is OpenSSL's, WebSocket is written by hand here, HTTP/2 is the package python3-h2.
"""

import base64
import os
import socket
import ssl
import struct
import sys

import h2.config
import h2.connection
import h2.events
import h2.settings

PORT, CARRIER = int(sys.argv[1]), sys.argv[2]


def dial():
    context = ssl.create_default_context(cafile="ca.pem")
    context.load_cert_chain("cert.pem", "key.pem")
    tls = context.wrap_socket(socket.create_connection(("127.0.0.1", PORT)), server_hostname="localhost")
    head = "GET /python HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
    if CARRIER == "native":
        head += "Upgrade: h2c-reverse\r\n"
    else:
        key = base64.b64encode(os.urandom(16)).decode()
        head += "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: h2c-reverse\r\n"
        head += f"Sec-WebSocket-Key: {key}\r\n"
    tls.sendall((head + "\r\n").encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += tls.recv(1)
    assert answer.startswith(b"HTTP/1.1 101 "), answer
    return tls


def frame(opcode, payload, masked):
    head = bytes([0x80 | opcode])
    mask = 0x80 if masked else 0
    if len(payload) < 126:
        head += bytes([mask | len(payload)])
    elif len(payload) < 65536:
        head += bytes([mask | 126]) + struct.pack("!H", len(payload))
    else:
        head += bytes([mask | 127]) + struct.pack("!Q", len(payload))
    if not masked:
        return head + payload
    key = os.urandom(4)
    return head + key + bytes(byte ^ key[at % 4] for at, byte in enumerate(payload))


class Frames:
    """Cuts a stream of bytes into WebSocket frames."""

    def __init__(self):
        self.data = b""

    def feed(self, data):
        self.data += data
        while len(self.data) >= 2:
            opcode, length, at = self.data[0] & 15, self.data[1] & 127, 2
            for code, form in ((126, "!H"), (127, "!Q")):
                if length == code:
                    size = struct.calcsize(form)
                    if len(self.data) < at + size:
                        return
                    (length,), at = struct.unpack(form, self.data[at : at + size]), at + size
                    break
            masked = self.data[1] & 128
            key, at = (self.data[at : at + 4], at + 4) if masked else (b"\0\0\0\0", at)
            if len(self.data) < at + length:
                return
            payload = self.data[at : at + length]
            self.data = self.data[at + length :]
            yield opcode, bytes(byte ^ key[i % 4] for i, byte in enumerate(payload)) if masked else payload


class Device:
    def __init__(self, tls):
        self.tls = tls
        self.carrier = Frames()
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.http.initiate_connection()
        # In SETTINGS of its own, after the first: that is how this package does it.
        self.http.update_settings({h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL: 1})
        # By stream: what is still to be sent, and what is to follow it.
        self.waiting = {}
        self.paths = {}
        self.websockets = {}

    def receive(self):
        data = self.tls.recv(65536)
        if CARRIER == "native" or not data:
            return data
        data, http = data, b""
        for opcode, payload in self.carrier.feed(data):
            if opcode == 2:
                http += payload
            elif opcode == 8:
                return b""
        return http or None

    def flush(self):
        out = self.http.data_to_send()
        # Cut where it hurts: heads of frames come in two pieces.
        for at in range(0, len(out), 10_007):
            piece = out[at : at + 10_007]
            self.tls.sendall(piece if CARRIER == "native" else frame(2, piece, True))

    def send(self, stream, data, end=False):
        queued, ends = self.waiting.get(stream, (b"", False))
        self.waiting[stream] = (queued + data, ends or end)
        self.pump(stream)

    def pump(self, stream):
        data, end = self.waiting.get(stream, (b"", False))
        while data:
            room = min(self.http.local_flow_control_window(stream), self.http.max_outbound_frame_size)
            if room <= 0:
                break
            # Padded, which is rare, and right.
            self.http.send_data(stream, data[: max(room - 8, 1)], pad_length=7 if room > 8 else None)
            data = data[max(room - 8, 1) :]
        self.waiting[stream] = (data, end)
        if end and not data:
            del self.waiting[stream]
            self.http.send_headers(stream, [("x-trailer", "the end")], end_stream=True)

    def handle(self, event):
        if isinstance(event, h2.events.RequestReceived):
            headers = dict(event.headers)
            path = headers[":path"]
            self.paths[event.stream_id] = path
            answer = [(":status", "200"), ("x-path", path), ("server", "python"), ("date", "Mon, 21 Oct 2013 20:13:21 GMT")]
            if headers.get(":protocol") == "websocket":
                self.websockets[event.stream_id] = Frames()
                answer.append(("sec-websocket-protocol", headers["sec-websocket-protocol"]))
            self.http.send_headers(event.stream_id, answer)
            if path == "/hello":
                self.send(event.stream_id, b"hello from python", end=True)
        elif isinstance(event, h2.events.DataReceived):
            self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if event.stream_id in self.websockets:
                for opcode, payload in self.websockets[event.stream_id].feed(event.data):
                    if opcode == 2:
                        self.send(event.stream_id, frame(9, b"ping", False) + frame(2, payload, False))
                    elif opcode == 8:
                        self.send(event.stream_id, frame(8, payload, False), end=True)
            elif self.paths[event.stream_id] == "/echo":
                self.send(event.stream_id, event.data)
        elif isinstance(event, h2.events.StreamEnded):
            if self.paths[event.stream_id] == "/echo":
                self.send(event.stream_id, b"", end=True)
        elif isinstance(event, (h2.events.WindowUpdated, h2.events.RemoteSettingsChanged)):
            for stream in list(self.waiting) if not getattr(event, "stream_id", 0) else [event.stream_id]:
                self.pump(stream)
        elif isinstance(event, h2.events.StreamReset):
            self.waiting.pop(event.stream_id, None)
        elif isinstance(event, h2.events.ConnectionTerminated):
            print("closed", event.error_code, flush=True)

    def run(self):
        self.flush()
        while (data := self.receive()) != b"":
            for event in self.http.receive_data(data or b""):
                self.handle(event)
            self.flush()


Device(dial()).run()
