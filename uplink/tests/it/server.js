// An uplink server as somebody else would make it: prints its port, admits one device, asks it a few things.
'use strict';
const crypto = require('node:crypto');
const fs = require('node:fs');
const http2 = require('node:http2');
const { Duplex } = require('node:stream');
const tls = require('node:tls');
const websocket = require('./websocket.js');

const server = tls.createServer({
  cert: fs.readFileSync('cert.pem'), key: fs.readFileSync('key.pem'), ca: fs.readFileSync('ca.pem'),
  requestCert: true, rejectUnauthorized: true,
}, (socket) => {
  websocket.head(socket, (head, rest) => {
    if (rest.length) throw new Error('the device spoke before its turn');
    const key = /\r\nsec-websocket-key: (.*)/i.exec(head);
    let carrier = socket;
    // Node aborts when its HTTP/2 takes a socket that has a write of ours under way.
    const begin = () => setImmediate(() => {
      ask(http2.connect('http://device', { createConnection: () => carrier })).then(() => server.close());
    });
    console.log('admitted', socket.getPeerCertificate().subject.serialNumber);
    if (key) {
      const accept = crypto.createHash('sha1').update(key[1] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11').digest('base64');
      socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n'
        + `Sec-WebSocket-Accept: ${accept}\r\nSec-WebSocket-Protocol: h2c-reverse\r\n\r\n`, begin);
      carrier = new Duplex({
        read() {},
        write(chunk, _encoding, done) { socket.write(websocket.frame(chunk, false), done); },
        final(done) { socket.end(done); },
      });
      socket.on('data', websocket.reader((opcode, payload) => { if (opcode === 2) carrier.push(payload); }));
      socket.on('end', () => carrier.push(null));
      socket.resume();
    } else {
      socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c-reverse\r\n\r\n', begin);
    }
  });
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));

/** The status and the body of one request. */
const fetch = (session, headers, body) => new Promise((resolve, reject) => {
  const stream = session.request(headers);
  const chunks = [];
  let status;
  stream.on('response', (answer) => { status = answer[':status']; });
  stream.on('data', (chunk) => chunks.push(chunk));
  stream.on('end', () => resolve({ status, body: Buffer.concat(chunks) }));
  stream.on('error', reject);
  stream.end(body);
});

/** What comes back through a WebSocket after `text` was sent, or the status that refused it. */
const exchange = (session, path, text) => new Promise((resolve, reject) => {
  const stream = session.request({
    ':method': 'CONNECT', ':protocol': 'websocket', ':scheme': 'http', ':authority': 'device', ':path': path,
    'sec-websocket-version': '13', 'sec-websocket-protocol': 'rtsp.onvif.org',
  });
  stream.on('error', reject);
  stream.on('response', (answer) => {
    if (answer[':status'] !== 200) { stream.close(); resolve(answer[':status']); return; }
    stream.on('data', websocket.reader((opcode, payload) => {
      if (opcode !== 2) return;
      resolve(`200 ${answer['sec-websocket-protocol']} ${payload}`);
      stream.end();
    }));
    stream.write(websocket.frame(Buffer.from(text), true));
  });
});

async function ask(session) {
  await new Promise((resolve) => session.once('remoteSettings', resolve));
  if (!session.remoteSettings.enableConnectProtocol) throw new Error('no SETTINGS_ENABLE_CONNECT_PROTOCOL');
  const hello = await fetch(session, { ':path': '/hello' });
  console.log(`GET /hello: ${hello.status} ${hello.body}`);
  const data = Buffer.alloc(500000, 'homing');
  const echo = await fetch(session, { ':method': 'POST', ':path': '/echo' }, data);
  console.log(`POST /echo: ${echo.status} ${echo.body.length} ${echo.body.equals(data) ? 'equal' : 'different'}`);
  console.log('CONNECT /echo:', await exchange(session, '/echo', 'OPTIONS * RTSP/1.0'));
  console.log('CONNECT /nothing:', await exchange(session, '/nothing', ''));
  session.close();
}
