/** The landing page: shows that the node is alive, and lets one publish and subscribe. */

import { connect } from "/js/ganglion.js";

const ROWS_MAX = 100;
const at = (id) => document.getElementById(id);
let mesh;

function show(state, why = "") {
  at("state").textContent = state;
  at("state").className = `state ${state}`;
  at("state").title = why;
}

function tell(output, text, isBad = false) {
  at(output).textContent = text;
  at(output).className = isBad ? "bad" : "";
}

function connected() {
  if (!mesh) throw new Error("There is no connection: the node asks for a name and a password, or is not there.");
  return mesh;
}

async function begin(options = {}) {
  await mesh?.close();
  mesh = undefined;
  show("connecting");
  try {
    const address = new URL("/ws", location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    mesh = await connect(address, { ...options, attemptsMax: 1 });
  } catch (error) {
    show("closed", error.message);
    at("node").textContent = error.message;
    at("access").open = error.code === "not_authenticated" || error.code === "not_allowed";
    return;
  }
  mesh.addEventListener("state", ({ state, reason }) => show(state, reason));
  show(mesh.state);
  const { node, software, user } = mesh.greeting;
  at("node").textContent = `Node ${node}, ${software}${user ? `, as ${user}` : ""}.`;
  at("access").open = false;
}

function addRow(message) {
  const row = at("messages").insertRow(0);
  for (const text of [new Date().toLocaleTimeString(), message.topic, message.text]) {
    row.insertCell().textContent = text; // never as HTML: anybody may have sent it
  }
  while (at("messages").rows.length > ROWS_MAX) at("messages").deleteRow(-1);
}

function onSubmit(form, output, act) {
  at(form).addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      tell(output, await act(new FormData(event.target)));
    } catch (error) {
      tell(output, error.message, true);
    }
  });
}

onSubmit("publish", "receipt", async (fields) => {
  const options = { retain: fields.has("retain") };
  const { subscribers, queues, streams } = await connected().publish(fields.get("topic"), fields.get("payload"), options);
  return `Went to ${subscribers} subscribers, ${queues} queues and ${streams} streams.`;
});

onSubmit("subscribe", "subscribed", async (fields) => {
  const { filter } = await connected().subscribe(fields.get("filter"), addRow);
  return `Subscribed to ${filter}.`;
});

at("login").addEventListener("submit", (event) => {
  event.preventDefault();
  const fields = new FormData(event.target);
  begin({ user: fields.get("user"), password: fields.get("password") });
});

begin();
