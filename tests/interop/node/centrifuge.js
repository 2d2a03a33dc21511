// centrifuge-js, driven by lines of JSON: orders come in, {done} and {event} go out (see ../sdks.py).
"use strict";

const readline = require("readline");
const { Centrifuge } = require("centrifuge");
const WebSocket = require("ws");

const [url, token] = process.argv.slice(2);
const tell = (value) => process.stdout.write(JSON.stringify(value) + "\n");
const event = (...what) => tell({ event: what });

const client = new Centrifuge(url, {
  websocket: WebSocket,
  token,
  minReconnectDelay: 10,
  maxReconnectDelay: 100,
  timeout: 25000,
});
client.on("connected", (ctx) => event("connected", ctx.client));
client.on("disconnected", (ctx) => event("disconnected", ctx.code, ctx.reason));
client.on("subscribed", (ctx) => event("server subscribed", ctx.channel));
client.on("unsubscribed", (ctx) => event("server unsubscribed", ctx.channel));
client.on("publication", (ctx) => event("publication", ctx.channel, ctx.data, ctx.offset || 0));

function subscribe({ channel, recoverable, join_leave }) {
  const sub = client.newSubscription(channel, { recoverable, joinLeave: join_leave });
  sub.on("subscribed", (ctx) => event("subscribed", channel, ctx.wasRecovering, ctx.recovered));
  sub.on("unsubscribed", (ctx) => event("unsubscribed", channel, ctx.code));
  sub.on("publication", (ctx) => event("publication", channel, ctx.data, ctx.offset || 0));
  sub.on("join", (ctx) => event("join", channel, ctx.info.user));
  sub.on("leave", (ctx) => event("leave", channel, ctx.info.user));
  sub.subscribe();
}

const orders = {
  connect: () => client.connect(),
  subscribe,
  unsubscribe: ({ channel }) => client.getSubscription(channel).unsubscribe(),
  publish: ({ channel, data }) => client.publish(channel, data).then(() => null),
  presence: ({ channel }) =>
    client.presence(channel).then(({ clients }) => Object.values(clients).map(({ user }) => user).sort()),
  presence_stats: ({ channel }) => client.presenceStats(channel).then((s) => [s.numClients, s.numUsers]),
  history: ({ channel, limit }) =>
    client.history(channel, { limit }).then((h) => [h.publications.map((p) => [p.data, p.offset]), h.offset]),
  rpc: ({ method, data }) => client.rpc(method, data).then((result) => result.data),
};

const lines = readline.createInterface({ input: process.stdin });
lines.on("line", async (line) => {
  const order = JSON.parse(line);
  try {
    tell({ done: (await orders[order.order](order)) ?? null });
  } catch (error) {
    tell({ failed: error.code ?? String(error) });
  }
});
lines.on("close", () => process.exit(0));
