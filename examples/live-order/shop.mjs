/**
 * A shop that takes orders as requests and tells of each how it stands, as it happens.
 *
 *     node examples/live-order/shop.mjs ws://127.0.0.1:8080/ws
 *
 * Then open http://127.0.0.1:8080/js/order.html, the customer's side. Needs Node 22 or later.
 */

import { setTimeout as sleep } from "node:timers/promises";
import { connect } from "../../clients/js/ganglion.js";

const [url = "ws://127.0.0.1:8080/ws", pace = "1500"] = process.argv.slice(2);
const STEPS = ["accepted", "in the oven", "on its way", "delivered"];

const mesh = await connect(url, { client: "shop" });
await mesh.declareStream("orders", { keyed: true });

async function bake(order) {
  for (const [version, status] of STEPS.entries()) {
    // The last value is kept, so that a customer who comes late or comes back sees it at once.
    await mesh.publish(`orders/${order}/status`, { status, step: version + 1, of: STEPS.length }, { retain: true });
    await mesh.append("orders", { status }, { key: order });
    await sleep(Number(pace));
  }
}

await mesh.serve("shop/order", (call) => {
  const { item } = call.json();
  const order = crypto.randomUUID().slice(0, 8);
  console.log(`order ${order}: ${item}`);
  bake(order);
  return { order };
});
console.log("the shop is open");
