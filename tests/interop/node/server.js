// The server's side of any talk (see ../talk.py), by Node's `ws`. Prints its port, then a report for each connection.
"use strict";

const { WebSocketServer } = require("ws");

const [compressed, supported] = JSON.parse(process.argv[2]);

const server = new WebSocketServer({
  host: "127.0.0.1",
  port: 0,
  perMessageDeflate: compressed,
  handleProtocols: (offered) => supported.find((name) => offered.has(name)) || false,
});

server.on("listening", () => console.log(server.address().port));

server.on("connection", (socket) => {
  const { protocol, extensions } = socket;
  socket.on("error", (error) => console.error(error));
  socket.on("message", (data, isBinary) => {
    const message = isBinary ? data : data.toString();
    const [, command, rest] = /^(ping|close) ([^]*)$/.exec(isBinary ? "" : message) || [];
    if (command === "ping") {
      socket.once("pong", (data) => socket.send(`pong ${data}`));
      socket.ping(rest);
    } else if (command === "close") {
      const [, code, reason] = /^(\d+) ([^]*)$/.exec(rest);
      socket.close(Number(code), reason);
    } else {
      socket.send(message);
    }
  });
  socket.on("close", (code, reason) => {
    const extension = extensions.split(";")[0];
    console.log(JSON.stringify({ protocol, extension, code, reason: String(reason) }));
  });
});
