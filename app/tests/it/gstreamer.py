"""gst-launch-1.0 that trusts the CA in a file, and nobody else: CA PIPELINE…, whose rtspsrc is called source."""

import sys

import gi

gi.require_version("Gst", "1.0")
from gi.repository import Gio, Gst  # noqa: E402

Gst.init(None)
pipeline = Gst.parse_launchv(sys.argv[2:])
pipeline.get_by_name("source").set_property("tls-database", Gio.TlsFileDatabase.new(sys.argv[1]))
pipeline.set_state(Gst.State.PLAYING)
ends = Gst.MessageType.EOS | Gst.MessageType.ERROR
message = pipeline.get_bus().timed_pop_filtered(Gst.CLOCK_TIME_NONE, ends)
pipeline.set_state(Gst.State.NULL)
if message.type == Gst.MessageType.ERROR:
    sys.exit(" ".join(map(str, message.parse_error())))
