// Peer: `ws` on Node.js, with the native `bufferutil` its documentation recommends for speed.
'use strict';
const fs = require('fs');
const http = require('http');
const https = require('https');
const { WebSocket, WebSocketServer } = require('ws');

const flags = process.argv.slice(2);
const tls = flags.indexOf('--tls');
const twice = flags.includes('--twice');
const broadcast = flags.includes('--broadcast');
const server =
  tls < 0
    ? http.createServer()
    : https.createServer({ cert: fs.readFileSync(flags[tls + 1]), key: fs.readFileSync(flags[tls + 2]) });
const sockets = new WebSocketServer({ server, perMessageDeflate: flags.includes('--deflate') });

sockets.on('connection', (socket) => {
  socket.on('error', () => {});
  socket.on('message', (data, binary) => {
    if (!broadcast) {
      socket.send(data, { binary });
      if (twice) socket.send(data, { binary });
      return;
    }
    for (const peer of sockets.clients) {
      if (peer.readyState === WebSocket.OPEN) peer.send(data, { binary });
    }
  });
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
