// The client's side of each talk (see ../talk.py), in a browser's page or by Node's `ws`.
"use strict";

const inNode = typeof window === "undefined";
const Socket = inNode ? require("ws") : WebSocket;

function text(size) {
  return "G€é😀".repeat(Math.floor(size / 10)) + "a".repeat(size % 10);
}

function binary(size) {
  return Uint8Array.from({ length: size }, (_, i) => ((i % 65536) * 7 + ((i % 65536) >> 8)) & 255);
}

function equal(got, sent) {
  if (typeof sent === "string") return got === sent;
  const bytes = new Uint8Array(got);
  return bytes.length === sent.length && bytes.every((byte, i) => byte === sent[i]);
}

// Returns a function that waits for the next message, or for the event that the socket was closed.
function reader(socket) {
  const arrived = [];
  let waiting = null;
  const give = (item) => {
    if (waiting === null) {
      arrived.push(item);
    } else {
      waiting(item);
      waiting = null;
    }
  };
  socket.addEventListener("message", (event) => give(event.data));
  socket.addEventListener("close", give);
  return () => (arrived.length ? Promise.resolve(arrived.shift()) : new Promise((resolve) => (waiting = resolve)));
}

// A browser's script cannot ping.
async function ping(socket, data) {
  if (!socket.ping) return;
  const pong = new Promise((resolve) => socket.once("pong", resolve));
  socket.ping(data);
  if ((await pong).toString() !== data) throw new Error("pong of another ping");
}

async function lead(url, talk, compressed) {
  const socket = inNode
    ? new Socket(url, talk.protocols, { perMessageDeflate: compressed })
    : new Socket(url, talk.protocols);
  socket.binaryType = "arraybuffer";
  const next = reader(socket);
  await new Promise((resolve, reject) => {
    socket.addEventListener("open", resolve);
    socket.addEventListener("error", () => reject(new Error("not connected")));
  });
  const echoed = [];
  for (const [kind, size] of talk.messages) {
    const sent = kind === "text" ? text(size) : binary(size);
    socket.send(sent);
    if (equal(await next(), sent)) echoed.push([kind, size]);
  }
  for (const data of talk.pings) {
    await ping(socket, data);
    socket.send(`ping ${data}`);
    if ((await next()) === `pong ${data}`) echoed.push(["pong", data]);
  }
  const { protocol, extensions } = socket;
  if (talk.closer === "server") {
    socket.send(`close ${talk.code} ${talk.reason}`);
  } else if (talk.code === null) {
    socket.close();
  } else {
    socket.close(talk.code, talk.reason);
  }
  const { code, reason } = await next();
  return { echoed, protocol, extension: extensions.split(";")[0], code, reason: String(reason) };
}

// Reports, or a string that says what went wrong.
async function leadAll({ url, talks, compressed }) {
  try {
    const reports = [];
    for (const talk of talks) reports.push(await lead(url, talk, compressed));
    return reports;
  } catch (error) {
    return String(error.stack || error);
  }
}

if (inNode) {
  const plan = JSON.parse(require("fs").readFileSync(0, "utf8"));
  leadAll(plan).then((reports) => console.log(JSON.stringify(reports)));
}
