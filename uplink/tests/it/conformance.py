"""The server that a device dials, doing what RFC 9113 forbids: a fresh uplink for each case, then one breach of one rule.

Prints its port, then a line of JSON for each case: what came back. It judges nothing; `conformance.rs` says what must come.

Nothing is shared with ours: TLS is OpenSSL's, what comes is read by hyperframe and hpack, what is sent is bytes by hand,
since a library that knows the rules would not send it.
"""

import contextlib
import itertools
import json
import socket
import ssl

import hpack
import hyperframe.frame as frames

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x01
END_HEADERS, PADDED, WITH_PRIORITY = 0x04, 0x08, 0x20
ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 2, 3, 4, 5
CANCEL = 8
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LARGEST_WINDOW = 2**31 - 1
FRAME_SIZE = 16384
# For a device that says nothing at all; every answer comes sooner.
DEADLINE_S = 5
# Above every other, so that it may be opened whatever the case has done.
PROBE = 999


class Ended(Exception):
    """The device has closed the connection."""


def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def number(value):
    return value.to_bytes(4, "big")


def settings(*pairs):
    return frame(SETTINGS, 0, 0, b"".join(name.to_bytes(2, "big") + number(value) for name, value in pairs))


def window_update(stream, increment):
    return frame(WINDOW_UPDATE, 0, stream, number(increment))


def fields(method="GET", path="/hello", *more):
    return [(":method", method), (":scheme", "https"), (":path", path), (":authority", "device"), *more]


def without(name):
    return [field for field in fields() if field[0] != name]


class Uplink:
    """One connection: sends anything, and keeps what comes."""

    def __init__(self, tls):
        self.tls = tls
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()
        self.buffer = b""
        # Of the device: its SETTINGS, how often it acknowledged ours, and its answers by stream.
        self.settings, self.acknowledged = None, 0
        self.statuses, self.bodies, self.finished, self.resets = {}, {}, set(), {}
        self.pongs, self.goaway, self.closed = [], None, None
        self.serial = itertools.count(1)
        # Of the case: the stream that it is about, and what it has to tell beyond that.
        self.subject, self.told = 1, ""

    def send(self, *pieces):
        # A device that has closed takes nothing more; what it said before that is still to be read.
        with contextlib.suppress(OSError):
            self.tls.sendall(b"".join(pieces))

    def until(self, condition):
        while not condition():
            self.receive()

    def receive(self):
        while len(self.buffer) < 9:
            self.receive_bytes()
        head, length = frames.Frame.parse_frame_header(memoryview(self.buffer[:9]))
        while len(self.buffer) < 9 + length:
            self.receive_bytes()
        head.parse_body(memoryview(self.buffer[9 : 9 + length]))
        self.buffer = self.buffer[9 + length :]
        self.take(head)

    def receive_bytes(self):
        try:
            data = self.tls.recv(65536)
            how = "orderly"
        except TimeoutError:
            raise
        except OSError as error:
            data, how = b"", f"broken: {error}"
        if not data:
            self.closed = how
            raise Ended
        self.buffer += data

    def take(self, it):
        stream = it.stream_id
        if isinstance(it, frames.SettingsFrame):
            if "ACK" in it.flags:
                self.acknowledged += 1
            else:
                self.settings = dict(it.settings)
        elif isinstance(it, frames.PingFrame):
            if "ACK" in it.flags:
                self.pongs.append(bytes(it.opaque_data))
        elif isinstance(it, frames.GoAwayFrame):
            self.goaway = it.error_code
        elif isinstance(it, frames.RstStreamFrame):
            self.resets[stream] = it.error_code
        elif isinstance(it, frames.HeadersFrame):
            assert "END_HEADERS" in it.flags, "the answers of this test fit into one frame"
            self.statuses.setdefault(stream, dict(self.decoder.decode(it.data))[":status"])
        elif isinstance(it, frames.DataFrame):
            self.bodies[stream] = self.bodies.get(stream, b"") + it.data
        if "END_STREAM" in it.flags:
            self.finished.add(stream)

    # What a case is made of.

    def begin(self):
        self.send(PREFACE, settings())
        self.until(lambda: self.settings is not None and self.acknowledged == 1)
        self.send(frame(SETTINGS, ACK, 0))

    def set(self, *pairs):
        before = self.acknowledged
        self.send(settings(*pairs))
        self.until(lambda: self.acknowledged > before)

    def ping(self, flags=0, stream=0):
        payload = b"ping%04d" % next(self.serial)
        self.send(frame(PING, flags, stream, payload))
        self.until(lambda: payload in self.pongs)

    def barrier(self):
        """What the device had to send by now has come: its answer to one PING may overtake DATA, not that to the next."""
        self.ping()
        self.ping()

    def block(self, of):
        return self.encoder.encode(of)

    def head(self, stream, of=None, flags=END_STREAM):
        return frame(HEADERS, flags | END_HEADERS, stream, self.block(of or fields()))

    def open(self, stream=1, *more):
        """A request whose body is to follow, which the device sends back."""
        self.send(self.head(stream, fields("POST", "/echo", *more), flags=0))
        self.ping()

    def half_close(self):
        """A request that is complete, and an answer that is not: for want of a window nothing of it comes."""
        self.set((INITIAL_WINDOW_SIZE, 0))
        self.send(self.head(1, fields("GET", "/endless")))
        self.until(lambda: 1 in self.statuses)

    def finish(self):
        """A request and its whole answer."""
        self.send(self.head(1))
        self.until(lambda: 1 in self.finished)

    def cut(self):
        """Half of a field block; CONTINUATION with the other half must follow."""
        block = self.block(fields())
        self.send(frame(HEADERS, END_STREAM, 1, block[:7]))
        return block[7:]

    def grown_to(self, size):
        """How long the answer on stream 1 is when it has come that far and stands still."""
        self.until(lambda: len(self.bodies.get(1, b"")) >= size)
        self.barrier()
        return len(self.bodies[1])

    def probe(self):
        """Whether requests are still answered; whatever the case has led to comes before that."""
        self.send(self.head(PROBE), window_update(PROBE, 100))
        self.until(lambda: PROBE in self.finished or PROBE in self.resets)
        self.barrier()
        return self.statuses.get(PROBE) == "200" and self.bodies.get(PROBE) == b"hello"

    def close(self):
        # Its last words may come where only the TLS close is expected.
        with contextlib.suppress(OSError):
            self.tls.unwrap()
        self.tls.close()


def sends(make):
    return lambda up: up.send(make(up))


def breaks(prepare, make):
    """A case that prepares something allowed, then sends something that is not."""

    def run(up):
        prepare(up)
        up.send(make(up))

    return run


def unknown_setting(up):
    up.set((0xFFFF, 7))


def pong(up):
    up.send(frame(PING, 0, 0, b"\x00homing\xff"))
    up.until(lambda: up.pongs)
    up.told = up.pongs[0].hex()


def pong_unasked(up):
    up.send(frame(PING, ACK, 0, b"unasked!"))
    up.barrier()
    up.told = "answered" if b"unasked!" in up.pongs else "not answered"


def echo(up, *pieces):
    up.send(*pieces)
    up.until(lambda: 1 in up.finished)
    up.told = f"{up.statuses[1]}, {len(up.bodies[1])} octets"


def largest_frame(up):
    up.open()
    echo(up, frame(DATA, END_STREAM, 1, bytes(FRAME_SIZE)))


def padded_request(up):
    block = up.block(fields("POST", "/echo"))
    up.send(frame(HEADERS, END_HEADERS | PADDED | WITH_PRIORITY, 1, b"\x03" + number(0) + b"\x10" + block + bytes(3)))
    echo(up, frame(DATA, END_STREAM | PADDED, 1, b"\x04homing" + bytes(4)))


def three_continuations(up):
    block = up.block(fields())
    up.send(frame(HEADERS, END_STREAM, 1, block[:2]), frame(CONTINUATION, 0, 1, block[2:4]), frame(CONTINUATION, 0, 1))
    echo(up, frame(CONTINUATION, END_HEADERS, 1, block[4:]))


def length_in_pieces(up):
    up.open(1, ("content-length", "10"))
    echo(up, frame(DATA, 0, 1, b"12345"), frame(DATA, END_STREAM, 1, b"67890"))


def te_trailers(up):
    echo(up, up.head(1, fields("GET", "/hello", ("te", "trailers"))))


def one_too_many(up):
    limit = up.settings[MAX_CONCURRENT_STREAMS]
    up.told = f"limit {limit}"
    up.subject = 2 * limit + 1
    for stream in range(1, up.subject, 2):
        up.open(stream)
    up.send(up.head(up.subject))
    up.until(lambda: up.subject in up.resets or up.subject in up.statuses)
    up.send(frame(DATA, END_STREAM, 1))
    up.until(lambda: 1 in up.finished)


def orderly_goaway(up):
    up.open()
    up.send(frame(GOAWAY, 0, 0, number(0) + number(0)))
    up.barrier()
    echo(up, frame(DATA, END_STREAM, 1, b"homing"))
    up.until(lambda: False)


def grows(up, window, then, steps):
    # An answer in a window of so many bytes, with further SETTINGS, after each update by so much as it may have come to.
    up.set((INITIAL_WINDOW_SIZE, window))
    up.send(up.head(1))
    lengths = [up.grown_to(window)]
    if then is not None:
        up.set((INITIAL_WINDOW_SIZE, then))
    for update, length in steps:
        up.send(window_update(1, update))
        lengths.append(up.grown_to(length))
    up.told = str(lengths)


def small_window(up):
    grows(up, 1, None, [(2, 3), (2, 5)])


def negative_window(up):
    grows(up, 3, 1, [(2, 3), (1, 4)])


def connection_window(up):
    up.set((INITIAL_WINDOW_SIZE, 1 << 20))
    up.send(up.head(1, fields("GET", "/endless")))
    lengths = [up.grown_to(65535)]
    up.send(window_update(0, 10))
    lengths.append(up.grown_to(65545))
    up.send(frame(RST_STREAM, 0, 1, number(CANCEL)), window_update(0, 1000))
    up.told = str(lengths)


def window_overrun(up):
    # Without a window the device's echo stands still, and it must take no more than the window that it gave.
    up.set((INITIAL_WINDOW_SIZE, 0))
    up.open()
    window = up.settings.get(INITIAL_WINDOW_SIZE, 65535)
    up.send(frame(DATA, 0, 1, bytes(FRAME_SIZE)) * (window // FRAME_SIZE + 2))


def overflowing_settings(up):
    up.half_close()
    up.send(window_update(1, LARGEST_WINDOW), settings((INITIAL_WINDOW_SIZE, 1)))


def long_padding(up):
    name = up.encoder.huffman_coder.encode(b"x-padded") + b"\xff"
    field = b"\x00" + bytes([0x80 | len(name)]) + name + b"\x011"
    up.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, up.block(fields()) + field))


def depends_on_itself(up):
    up.send(frame(HEADERS, END_STREAM | END_HEADERS | WITH_PRIORITY, 1, ITSELF + up.block(fields())))
    # What the next request leads to is not to overtake the answer to this one.
    up.until(lambda: 1 in up.resets or 1 in up.finished)


def request(*of):
    return sends(lambda up: up.head(1, list(of)))


def header(name, value):
    return request(*fields("GET", "/hello", (name, value)))


def body(length, *pieces):
    def run(up):
        up.open(1, ("content-length", length))
        up.send(*pieces)

    return run


def trailers(flags, of):
    return breaks(Uplink.open, lambda up: up.head(1, [of], flags))


def on(state, make):
    return breaks(state, lambda up: make)


def reset_by_us(up):
    up.open()
    up.send(frame(RST_STREAM, 0, 1, number(CANCEL)))


IDLE = Uplink.barrier
ITSELF = number(1) + b"\x10"

# By what is sent; the same names are in the table of `conformance.rs`.
CASES = {
    "an unknown frame type": sends(lambda up: frame(0xFA, 0xFF, 0, b"homing") + frame(0xFB, 0xFF, 1, b"homing")),
    "PING with flags that it does not have": lambda up: up.ping(flags=0xFE),
    "the reserved bit before a stream identifier": lambda up: up.ping(stream=1 << 31),
    "an unknown frame type amid a field block": breaks(Uplink.cut, lambda up: frame(0xFA, 0, 1)),
    "DATA of SETTINGS_MAX_FRAME_SIZE": largest_frame,
    "DATA larger than SETTINGS_MAX_FRAME_SIZE": on(Uplink.open, frame(DATA, 0, 1, bytes(FRAME_SIZE + 1))),
    "HEADERS larger than SETTINGS_MAX_FRAME_SIZE": sends(
        lambda up: up.head(1, fields("GET", "/hello", ("x-long", "\x7f" * FRAME_SIZE)))
    ),
    "an index beyond HPACK's tables": sends(lambda up: frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\xfe")),
    "a Huffman code padded by more than 7 bits": long_padding,
    "a table larger than SETTINGS_HEADER_TABLE_SIZE": sends(
        lambda up: frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\x3f\xe1\xff\x03" + up.block(fields()))
    ),
    "a field block that breaks off": sends(
        lambda up: frame(HEADERS, END_STREAM | END_HEADERS, 1, up.block(fields("GET", "/hello", ("x-cut", "off")))[:-1])
    ),
    "DATA on an idle stream": on(IDLE, frame(DATA, END_STREAM, 1, b"homing")),
    "RST_STREAM on an idle stream": on(IDLE, frame(RST_STREAM, 0, 1, number(CANCEL))),
    "WINDOW_UPDATE on an idle stream": on(IDLE, window_update(1, 100)),
    "CONTINUATION on an idle stream": sends(lambda up: frame(CONTINUATION, END_HEADERS, 1, up.block(fields()))),
    "PRIORITY on an idle stream": on(IDLE, frame(PRIORITY, 0, 1, number(0) + b"\x10")),
    "DATA on a half-closed stream": on(Uplink.half_close, frame(DATA, END_STREAM, 1, b"homing")),
    "HEADERS on a half-closed stream": breaks(Uplink.half_close, lambda up: up.head(1)),
    "WINDOW_UPDATE and PRIORITY on a half-closed stream": on(
        Uplink.half_close, frame(PRIORITY, 0, 1, number(0) + b"\x10") + window_update(1, 1)
    ),
    "DATA on a closed stream": on(Uplink.finish, frame(DATA, END_STREAM, 1, b"homing")),
    "HEADERS on a closed stream": breaks(Uplink.finish, lambda up: up.head(1)),
    "WINDOW_UPDATE, PRIORITY and RST_STREAM on a closed stream": on(
        Uplink.finish,
        window_update(1, 1) + frame(PRIORITY, 0, 1, number(0) + b"\x10") + frame(RST_STREAM, 0, 1, number(CANCEL)),
    ),
    "DATA on a stream that was reset": on(reset_by_us, frame(DATA, END_STREAM, 1, b"homing")),
    "HEADERS on a stream that was reset": breaks(reset_by_us, lambda up: up.head(1)),
    "a request on an even stream": sends(lambda up: up.head(2)),
    "a request on a lower stream than before": sends(lambda up: up.head(5) + up.head(3)),
    "one stream more than SETTINGS_MAX_CONCURRENT_STREAMS": one_too_many,
    "PRIORITY that depends on itself": on(Uplink.open, frame(PRIORITY, 0, 1, ITSELF)),
    "HEADERS that depend on themselves": depends_on_itself,
    "PRIORITY on stream 0": on(IDLE, frame(PRIORITY, 0, 0, number(1) + b"\x10")),
    "PRIORITY of 4 octets": on(Uplink.open, frame(PRIORITY, 0, 1, number(0))),
    "DATA on stream 0": on(IDLE, frame(DATA, 0, 0, b"homing")),
    "DATA with more padding than payload": on(Uplink.open, frame(DATA, END_STREAM | PADDED, 1, b"\x06homin")),
    "HEADERS on stream 0": sends(lambda up: up.head(0)),
    "HEADERS with more padding than payload": sends(
        lambda up: frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, b"\xff" + up.block(fields()))
    ),
    "padding and a priority, as they may be": padded_request,
    "RST_STREAM on stream 0": on(IDLE, frame(RST_STREAM, 0, 0, number(CANCEL))),
    "RST_STREAM of 3 octets": on(Uplink.open, frame(RST_STREAM, 0, 1, b"\0\0\0")),
    "RST_STREAM with an unknown error code": on(Uplink.open, frame(RST_STREAM, 0, 1, number(0xFA))),
    "SETTINGS on a stream": on(Uplink.open, frame(SETTINGS, 0, 1)),
    "SETTINGS with ACK and a payload": on(IDLE, frame(SETTINGS, ACK, 0, bytes(6))),
    "SETTINGS of 3 octets": on(IDLE, frame(SETTINGS, 0, 0, bytes(3))),
    "SETTINGS_ENABLE_PUSH of 2": on(IDLE, settings((ENABLE_PUSH, 2))),
    "SETTINGS_INITIAL_WINDOW_SIZE of 2^31": on(IDLE, settings((INITIAL_WINDOW_SIZE, 2**31))),
    "SETTINGS_MAX_FRAME_SIZE of 16383": on(IDLE, settings((MAX_FRAME_SIZE, 16383))),
    "SETTINGS_MAX_FRAME_SIZE of 2^24": on(IDLE, settings((MAX_FRAME_SIZE, 2**24))),
    "an unknown setting": unknown_setting,
    "PING": pong,
    "PING with ACK, unasked": pong_unasked,
    "PING on a stream": on(Uplink.open, frame(PING, 0, 1, b"homing!!")),
    "PING of 6 octets": on(IDLE, frame(PING, 0, 0, b"homing")),
    "GOAWAY on a stream": on(Uplink.open, frame(GOAWAY, 0, 1, number(0) + number(0))),
    "GOAWAY of 7 octets": on(IDLE, frame(GOAWAY, 0, 0, bytes(7))),
    "GOAWAY while a request is under way": orderly_goaway,
    "WINDOW_UPDATE of 0 on the connection": on(IDLE, window_update(0, 0)),
    "WINDOW_UPDATE of 0 on a stream": on(Uplink.open, window_update(1, 0)),
    "WINDOW_UPDATE of 3 octets": on(IDLE, frame(WINDOW_UPDATE, 0, 0, b"\0\0\1")),
    "more than 2^31-1 of window on the connection": on(IDLE, window_update(0, LARGEST_WINDOW)),
    "more than 2^31-1 of window on a stream": on(Uplink.half_close, window_update(1, LARGEST_WINDOW) + window_update(1, 1)),
    "more than 2^31-1 of window by SETTINGS": overflowing_settings,
    "a stream's window of 1, then 2 more twice": small_window,
    "a stream's window that becomes negative": negative_window,
    "the connection's window, then 10 more": connection_window,
    "more DATA than the stream's window": window_overrun,
    "CONTINUATION behind a complete field block": on(Uplink.open, frame(CONTINUATION, END_HEADERS, 1)),
    "PING amid a field block": breaks(Uplink.cut, lambda up: frame(PING, 0, 0, b"homing!!")),
    "HEADERS of another stream amid a field block": breaks(Uplink.cut, lambda up: up.head(3)),
    "CONTINUATION of another stream": sends(lambda up: frame(CONTINUATION, END_HEADERS, 3, up.cut())),
    "CONTINUATION on stream 0": sends(lambda up: frame(CONTINUATION, END_HEADERS, 0, up.cut())),
    "three CONTINUATIONs, one of them empty": three_continuations,
    "trailers without END_STREAM": trailers(0, ("x-trailer", "the end")),
    "trailers with a pseudo-header field": trailers(END_STREAM, (":method", "GET")),
    "content-length 1 with 6 octets": body("1", frame(DATA, END_STREAM, 1, b"homing")),
    "content-length 10 with 6 octets": body("10", frame(DATA, 0, 1, b"hom"), frame(DATA, END_STREAM, 1, b"ing")),
    "content-length 10 without a body": header("content-length", "10"),
    "content-length 10 with as much in two frames": length_in_pieces,
    "an uppercase field name": header("X-Upper", "1"),
    "a space in a field name": header("x space", "1"),
    "a colon in a field name": header("x:colon", "1"),
    "a line feed in a field value": header("x-line", "a\nb"),
    "a space before a field value": header("x-space", " a"),
    "connection": header("connection", "keep-alive"),
    "transfer-encoding": header("transfer-encoding", "chunked"),
    "te: gzip": header("te", "gzip"),
    "te: trailers": te_trailers,
    "an unknown pseudo-header field": request((":unknown", "1"), *fields()),
    ":status in a request": request((":status", "200"), *fields()),
    "a pseudo-header field behind a regular one": request(("x-regular", "1"), *fields()),
    "no :method": request(*without(":method")),
    "no :scheme": request(*without(":scheme")),
    "no :path": request(*without(":path")),
    "neither :path nor :authority": request((":method", "GET"), (":scheme", "https")),
    "an empty :path": request(*fields("GET", "")),
    ":method twice": request((":method", "GET"), *fields()),
    ":path twice": request((":path", "/hello"), *fields()),
    "PUSH_PROMISE": breaks(
        Uplink.open, lambda up: frame(PUSH_PROMISE, END_HEADERS, 1, number(2) + up.block(fields()))
    ),
    "CONNECT with :scheme and :path": request(*fields("CONNECT", "/hello")),
    ":protocol with GET": request(*fields("GET", "/hello")[:2], (":protocol", "websocket"), *fields("GET", "/echo")[2:]),
    "extended CONNECT without :path": request(
        (":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"), (":authority", "device")
    ),
    "nothing that is forbidden": lambda up: up.finish(),
}

# Those that say something else where the others begin.
PREFACES = {
    "a preface with one wrong octet": sends(lambda up: PREFACE.replace(b"SM", b"SN") + settings()),
    "a preface without SETTINGS behind it": sends(lambda up: PREFACE + frame(PING, 0, 0, b"homing!!")),
}


def accept(listener, context):
    """Takes the device that dials, and answers its upgrade."""
    tcp, _ = listener.accept()
    tcp.settimeout(DEADLINE_S)
    # A case may be written in several small pieces.
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    tls = context.wrap_socket(tcp, server_side=True)
    assert tls.getpeercert()["subject"], "a device shows its certificate"
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += tls.recv(1)
    assert b"upgrade: h2c-reverse\r\n" in head.lower(), head
    tls.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c-reverse\r\n\r\n")
    return tls


def run(up, name):
    served = silent = False
    try:
        if name in CASES:
            up.begin()
            CASES[name](up)
        else:
            PREFACES[name](up)
        served = up.probe()
    except Ended:
        pass
    except TimeoutError:
        silent = True
    reset = up.resets.pop(up.subject, None)
    came = {"served": served, "silent": silent, "reset": reset, "other_resets": len(up.resets), "goaway": up.goaway}
    print(json.dumps({"case": name, "told": up.told, "closed": up.closed, **came}), flush=True)


def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain("cert.pem", "key.pem")
    context.load_verify_locations("ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        for name in [*PREFACES, *CASES]:
            up = Uplink(accept(listener, context))
            run(up, name)
            up.close()


main()
