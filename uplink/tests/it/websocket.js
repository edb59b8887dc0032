// RFC 6455 frames for the Node peers of the tests, written from the standard and not from our codec.
'use strict';

/** One unfragmented binary frame. */
exports.frame = (payload, masked) => {
  const head = [0x82];
  if (payload.length < 126) head.push(payload.length);
  else if (payload.length < 65536) head.push(126, payload.length >> 8, payload.length & 255);
  else head.push(127, 0, 0, 0, 0, ...[24, 16, 8, 0].map((shift) => (payload.length >>> shift) & 255));
  if (!masked) return Buffer.concat([Buffer.from(head), payload]);
  head[1] |= 0x80;
  const key = [0x12, 0x34, 0x56, 0x78];
  return Buffer.concat([Buffer.from([...head, ...key]), Buffer.from(payload.map((byte, at) => byte ^ key[at & 3]))]);
};

/** Collects frames from chunks: onFrame(opcode, payload). */
exports.reader = (onFrame) => {
  let pending = Buffer.alloc(0);
  return (chunk) => {
    pending = Buffer.concat([pending, chunk]);
    for (;;) {
      if (pending.length < 2) return;
      let at = 2;
      let length = pending[1] & 127;
      if (length === 126) { if (pending.length < 4) return; length = pending.readUInt16BE(2); at = 4; }
      else if (length === 127) { if (pending.length < 10) return; length = Number(pending.readBigUInt64BE(2)); at = 10; }
      const masked = pending[1] & 0x80;
      if (masked) at += 4;
      if (pending.length < at + length) return;
      const payload = Buffer.from(pending.subarray(at, at + length));
      if (masked) for (let n = 0; n < length; n++) payload[n] ^= pending[at - 4 + (n & 3)];
      const opcode = pending[0] & 15;
      pending = pending.subarray(at + length);
      onFrame(opcode, payload);
    }
  };
};

/** Reads an HTTP/1.1 head from a socket: callback(head, rest). */
exports.head = (socket, callback) => {
  let text = Buffer.alloc(0);
  const onData = (chunk) => {
    text = Buffer.concat([text, chunk]);
    const end = text.indexOf('\r\n\r\n');
    if (end < 0) return;
    socket.off('data', onData);
    socket.pause();
    callback(text.subarray(0, end).toString(), text.subarray(end + 4));
  };
  socket.on('data', onData);
};
