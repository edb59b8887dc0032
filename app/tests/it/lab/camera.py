"""An RTSP camera that is not ours: GStreamer's server, Digest, H.264 and, if wanted, A-law.

Prints `ready` once it listens, and then a JSON line for every picture that it hands to the network:
its place in the sequence, RTP timestamp, wall time, whether it is a key frame, and the SHA-256 (first
16 hex digits) of its slices as they were encoded. A recording can so be held against what was sent,
byte by byte, without trusting any clock.

Not for load: it hashes in Python.
"""

import argparse
import hashlib
import json
import sys
import time

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

# Two slices make two pictures for whoever counts slices: one thread, one slice.
ENCODER = "x264enc tune=zerolatency speed-preset=ultrafast bframes=0 threads=1 sliced-threads=false"


def slices(access_unit):
    """The VCL NAL units (types 1 and 5) of an Annex B access unit, without their start codes."""
    for part in access_unit.split(b"\x00\x00\x01")[1:]:
        nal = part.rstrip(b"\x00")
        if nal and nal[0] & 0x1F in (1, 5):
            yield nal


class Account:
    """What was sent, numbered through over all sessions."""

    def __init__(self):
        self.next = 0
        self.current = None

    def picture(self, _pad, info):
        buffer = info.get_buffer()
        found, view = buffer.map(Gst.MapFlags.READ)
        assert found
        nals = list(slices(bytes(view.data)))
        buffer.unmap(view)
        if nals:
            self.current = {
                "key": nals[0][0] & 0x1F == 5,
                "bytes": sum(len(nal) for nal in nals),
                "sha256": hashlib.sha256(b"".join(nals)).hexdigest()[:16],
            }
        return Gst.PadProbeReturn.OK

    def packets(self, _pad, info):
        if info.type & Gst.PadProbeType.BUFFER_LIST:
            packets = info.get_buffer_list()
            last = packets.get(packets.length() - 1)
        else:
            last = info.get_buffer()
        head = last.extract_dup(0, 8)
        # The marker bit ends a picture (RFC 6184 section 5.1).
        if head[1] & 0x80 and self.current:
            timestamp = int.from_bytes(head[4:8], "big")
            sent = {"frame": self.next, "rtp": timestamp, "time": time.time(), **self.current}
            print(json.dumps(sent), flush=True)
            self.next += 1
            self.current = None
        return Gst.PadProbeReturn.OK

    def watch(self, _factory, media):
        payloader = media.get_element().get_by_name("pay0")
        payloader.get_static_pad("sink").add_probe(Gst.PadProbeType.BUFFER, self.picture)
        kinds = Gst.PadProbeType.BUFFER | Gst.PadProbeType.BUFFER_LIST
        payloader.get_static_pad("src").add_probe(kinds, self.packets)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--address", default="127.0.0.1")
    arguments.add_argument("--port", default="554")
    arguments.add_argument("--path", default="/stream")
    arguments.add_argument("--user", default="root")
    arguments.add_argument("--password", required=True)
    arguments.add_argument("--width", type=int, default=640)
    arguments.add_argument("--height", type=int, default=360)
    arguments.add_argument("--fps", type=int, default=25)
    arguments.add_argument("--gop", type=int, default=50, help="pictures from key frame to key frame")
    arguments.add_argument("--kbit", type=int, default=500)
    arguments.add_argument("--audio", action="store_true")
    options = arguments.parse_args()

    Gst.init([])
    account = Account()
    server = GstRtspServer.RTSPServer(address=options.address, service=options.port)

    auth = GstRtspServer.RTSPAuth()
    auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "viewer")
    auth.add_digest(options.user, options.password, token)
    server.set_auth(auth)

    factory = GstRtspServer.RTSPMediaFactory()
    # The snow in one corner makes every picture different from every other.
    video = (
        f"videotestsrc is-live=true pattern=smpte ! video/x-raw,width={options.width},height={options.height},"
        f"framerate={options.fps}/1 ! {ENCODER} key-int-max={options.gop} bitrate={options.kbit} ! "
        "video/x-h264,profile=main,alignment=au,stream-format=byte-stream ! "
        "rtph264pay name=pay0 pt=96 config-interval=-1"
    )
    audio = "audiotestsrc is-live=true wave=ticks ! audio/x-raw,rate=8000,channels=1 ! alawenc ! rtppcmapay name=pay1 pt=8"
    factory.set_launch(f"( {video} {audio if options.audio else ''} )")
    factory.set_shared(True)
    permissions = GstRtspServer.RTSPPermissions()
    permissions.add_permission_for_role("viewer", "media.factory.access", True)
    permissions.add_permission_for_role("viewer", "media.factory.construct", True)
    factory.set_permissions(permissions)
    factory.connect("media-configure", account.watch)
    server.get_mount_points().add_factory(options.path, factory)

    if not server.attach(None):
        sys.exit(f"cannot listen on {options.address}:{options.port}")
    print("ready", flush=True)
    GLib.MainLoop().run()


main()
