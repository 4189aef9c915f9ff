/** The customer's side of the example: an order whose status arrives as it changes. */

import { connect } from "/js/ganglion.js";

const at = (id) => document.getElementById(id);
const address = new URL("/ws", location.href);
address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
const connected = connect(address); // awaited where it is needed: the form works from the start
let updates;

function onStatus(message) {
  const { status, step, of } = message.json();
  at("state").textContent = status;
  at("state").className = step === of ? "state open" : "state";
  at("progress").max = of;
  at("progress").value = step;
  const item = document.createElement("li");
  item.textContent = `${new Date().toLocaleTimeString()} ${status}`;
  at("steps").append(item);
}

at("order").addEventListener("submit", async (event) => {
  event.preventDefault();
  at("answer").className = "";
  try {
    const item = new FormData(event.target).get("item");
    const mesh = await connected;
    const { order } = (await mesh.request("shop/order", { item })).json();
    at("answer").textContent = `Order ${order}`;
    at("steps").replaceChildren();
    await updates?.close();
    updates = await mesh.subscribe(`orders/${order}/status`, onStatus);
  } catch (error) {
    at("answer").className = "bad";
    at("answer").textContent = error.code === "no_responders" ? "The shop is closed." : error.message;
  }
});
