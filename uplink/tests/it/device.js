// A device as somebody else would make it: dials PORT, upgrades, answers by Node's HTTP/2.
'use strict';
const fs = require('node:fs');
const http2 = require('node:http2');
const tls = require('node:tls');
const websocket = require('./websocket.js');

const socket = tls.connect({
  host: '127.0.0.1', port: Number(process.argv[2]), servername: 'localhost', ALPNProtocols: ['http/1.1'],
  ca: fs.readFileSync('ca.pem'), cert: fs.readFileSync('cert.pem'), key: fs.readFileSync('key.pem'),
}, () => {
  socket.write('GET /node HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: h2c-reverse\r\n\r\n');
});

websocket.head(socket, (head, rest) => {
  if (!/^HTTP\/1.1 101 /.test(head) || !/\r\nupgrade: h2c-reverse/i.test(head)) throw new Error(head);
  if (rest.length) socket.unshift(rest);
  const session = http2.performServerHandshake(socket, { settings: { enableConnectProtocol: true } });
  session.on('stream', (stream, headers) => {
    stream.on('error', () => {});
    const path = headers[':path'];
    if (headers[':protocol'] === 'websocket') {
      stream.respond({ ':status': 200, 'sec-websocket-protocol': headers['sec-websocket-protocol'] });
      stream.on('data', websocket.reader((opcode, payload) => {
        if (opcode === 2) stream.write(websocket.frame(payload, false));
        if (opcode === 8) stream.end(Buffer.concat([Buffer.from([0x88, payload.length]), payload]));
      }));
    } else if (path === '/echo') {
      stream.respond({ ':status': 200 });
      stream.pipe(stream);
    } else {
      stream.respond({ ':status': 200, 'x-path': path });
      stream.end('hello from node');
    }
  });
  session.on('close', () => console.log('closed'));
});
