const MOST_LINES = 500; // in the page
const REPLACED = "another connection has this name"; // the reason of the close
const NAME_TAKEN = 4001, NOT_UNDERSTOOD = 4000; // close codes

const at = (id) => document.getElementById(id);
const me = { name: sessionStorage.getItem("name"), key: sessionStorage.getItem("key") ?? "" };
const people = new Set(); // in the room
const partners = new Set(); // in private talk, wherever they are
let room = ""; // that is shown
let position = null; // of the last line that is shown
let socket;
let attempts = 0; // since there was a connection
let timer;

// The connection

function connect() {
  clearTimeout(timer);
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/chat`);
  socket.onopen = () => tell({ type: "hello", name: me.name, key: me.key });
  socket.onmessage = ({ data }) => { const { type, ...said } = JSON.parse(data); hear[type](said); };
  socket.onclose = ({ code, reason }) => {
    at("send").disabled = true;
    if (code === NAME_TAKEN || code === NOT_UNDERSTOOD) return ask(reason);
    const elsewhere = reason === REPLACED; // this name goes on in another window
    show(elsewhere ? "You are in another window" : "No connection, trying again", true);
    at("again").hidden = !elsewhere;
    if (!elsewhere) timer = setTimeout(connect, wait());
  };
}

// Milliseconds: longer from attempt to attempt, and not for all pages the same.
const wait = () => Math.min(200 * 2 ** attempts++, 10_000) * (0.5 + Math.random() / 2);

const tell = (said) => socket.send(JSON.stringify(said));

function show(state, isLost = false) {
  at("state").textContent = state;
  at("chat").classList.toggle("lost", isLost);
  document.body.dataset.state = isLost ? "lost" : "open"; // for tests
}

// What the server says

const hear = {
  welcome({ key, rooms, worker }) {
    me.key = key;
    sessionStorage.setItem("name", me.name);
    sessionStorage.setItem("key", key);
    attempts = 0;
    at("join").hidden = true;
    at("again").hidden = true;
    at("chat").hidden = false;
    at("rooms").replaceChildren(...rooms.map((name) => element("li", {}, element("a", { href: `#${name}` }, name))));
    document.body.dataset.worker = worker;
    show(`${me.name}, served by process ${worker + 1}`);
    at("send").disabled = false;
    enter();
  },

  room(said) {
    if (said.room !== room) return;
    if (!said.recovered) {
      if (position !== null) notice("Some lines before these are missing");
      else for (const item of at("log").querySelectorAll("li:not(.whisper)")) item.remove();
    }
    for (const line of said.lines) add(line);
    position = said.position;
  },

  line(line) {
    if (line.room !== room) return; // of the room before
    position = line.position;
    add(line);
  },

  whisper(line) {
    partners.add(line.name).add(line.to).delete(me.name);
    add(line);
    list();
  },

  people({ room: where, names }) {
    if (where !== room) return;
    people.clear();
    for (const name of names) people.add(name);
    list();
  },

  person({ room: where, name, here }) {
    if (where !== room || people.has(name) === here) return;
    here ? people.add(name) : people.delete(name);
    if (name !== me.name) notice(`${name} has ${here ? "come" : "left"}`);
    list();
  },

  refused({ why }) { notice(why); },
};

// What is shown

function element(kind, properties, ...content) {
  const made = Object.assign(document.createElement(kind), properties);
  made.append(...content); // text stays text
  return made;
}

function who(name, kind, properties = {}) {
  const made = element(kind, { className: "who", ...properties }, element("bdi", {}, name));
  made.style.setProperty("--hue", [...name].reduce((sum, letter) => (sum * 31 + letter.codePointAt()) % 360, 7));
  return made;
}

function add({ name, to, text, at: seconds }) {
  const time = new Date(seconds * 1000);
  const shown = time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  put(element("li", { className: to ? "whisper" : "line" },
    who(name, "span"), ...(to ? [" to ", who(to, "span"), " alone"] : []), " ",
    element("time", { dateTime: time.toISOString() }, shown),
    element("span", { className: "text", dir: "auto" }, text)), name === me.name);
}

const notice = (text) => put(element("li", { className: "notice" }, text));

function put(item, isOwn = false) {
  const log = at("log");
  log.append(item);
  while (log.children.length > MOST_LINES) log.firstChild.remove();
  if (isOwn) at("view").scrollTop = 0; // the end
}

function list() {
  const names = [...people].sort((one, other) => one.localeCompare(other));
  at("people").replaceChildren(...names.map((name) => element("li", {}, who(name, "button", {
    type: "button", title: `Write to ${name} alone`, onclick: () => address(name) }))));
  const chosen = at("to").value;
  const others = new Set([...names, ...partners]);
  others.delete(me.name);
  const options = [...others].map((name) => new Option(`To ${name} alone`, name));
  at("to").replaceChildren(new Option("To everybody here", ""), ...options);
  address(others.has(chosen) ? chosen : "", false);
}

function address(name, isAsked = true) {
  at("to").value = name === me.name ? "" : name;
  at("to").toggleAttribute("data-all", !at("to").value);
  if (isAsked) at("text").focus();
}

// What the person does

function ask(objection = "") {
  me.key = "";
  at("chat").hidden = true;
  at("join").hidden = false;
  at("objection").textContent = objection;
  at("name").value = me.name ?? "";
  at("name").focus();
}

function enter() {
  const rooms = [...document.querySelectorAll("#rooms a")];
  const link = rooms.find((each) => each.hash === location.hash) ?? rooms[0];
  for (const each of rooms) each.removeAttribute("aria-current");
  link.setAttribute("aria-current", "page");
  const name = link.hash.slice(1);
  if (name !== room) position = null;
  room = name;
  at("title").textContent = document.title = room;
  tell({ type: "enter", room, since: position });
}

onhashchange = () => { if (socket?.readyState === WebSocket.OPEN) enter(); };
onpagehide = () => { if (socket) socket.onclose = null; socket?.close(); }; // a browser may keep the page for "back"
onpageshow = ({ persisted }) => { if (persisted && me.name) connect(); };
ononline = () => { if (socket?.readyState === WebSocket.CLOSED) connect(); };

at("again").onclick = connect;
at("to").onchange = () => address(at("to").value);
at("text").onkeydown = ({ key }) => { if (key === "Escape") address(""); };

at("join").onsubmit = (event) => {
  event.preventDefault();
  me.name = at("name").value;
  connect();
};

at("say").onsubmit = (event) => {
  event.preventDefault();
  if (at("send").disabled) return; // the text stays until there is a connection
  const to = at("to").value, text = at("text").value;
  tell(to ? { type: "whisper", to, text } : { type: "say", text });
  at("text").value = "";
};

if (me.name) connect();
