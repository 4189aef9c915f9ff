/**
 * What ganglion.js promises, one case a run: `node client_cases.mjs CASE URL`.
 *
 * A case that waits for the test prints a line and reads one; a case that fails throws.
 */

import assert from "node:assert/strict";
import { createInterface } from "node:readline";
import { GanglionError, connect, matches } from "../../../clients/js/ganglion.js";

const [name, url] = process.argv.slice(2);
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

/** Tell the test, and wait until it has done what that is for. */
async function tell(what) {
  console.log(what);
  await lines.next();
}

async function take(channel, count) {
  const items = [];
  while (items.length < count) items.push((await channel.next()).value);
  return items;
}

const fails = (promise, code) =>
  assert.rejects(promise, (error) => error instanceof GanglionError && error.code === code);

const cases = {
  async matching() {
    const yes = [["a", "a"], ["a/+", "a/b"], ["#", "a/b"], ["a/#", "a"], ["a/#", "a/b/c"], ["+/+", "/a"], ["$x/+", "$x/a"]];
    const no = [["a", "b"], ["a/+", "a"], ["a/+", "a/b/c"], ["+", "$x"], ["#", "$x/a"], ["a/b/#", "a"]];
    for (const [filter, topic] of yes) assert(matches(filter, topic), `${filter} ${topic}`);
    for (const [filter, topic] of no) assert(!matches(filter, topic), `${filter} ${topic}`);
  },

  async messages() {
    const mesh = await connect(url, { client: "js" });
    const messages = await mesh.subscribe("shop/#");
    const receipt = await mesh.publish("shop/text", "grüße", { key: "k", headers: { a: "b" } });
    assert.deepEqual(receipt, { subscribers: 1, queues: 0, streams: 0 });
    await mesh.publish("shop/bytes", new Uint8Array([0xff, 0, 0x7f]));
    await mesh.publish("shop/mark", new Uint8Array([0xef, 0xbb, 0xbf, 0x41])); // a byte order mark is data
    await mesh.publish("shop/json", { order: 7 });
    assert(mesh.send("shop/unconfirmed", "5"));
    const [text, bytes, mark, json, unconfirmed] = await take(messages, 5);
    assert.equal(text.text, "grüße");
    assert.equal(text.key, "k");
    assert.deepEqual(text.headers, { a: "b" });
    assert.deepEqual([...bytes.bytes], [0xff, 0, 0x7f]);
    assert.deepEqual([...mark.bytes], [0xef, 0xbb, 0xbf, 0x41]);
    assert.deepEqual(json.json(), { order: 7 });
    assert.equal(json.contentType, "application/json");
    assert.equal(unconfirmed.json(), 5);
    await messages.close();
    assert.deepEqual(await messages.next(), { value: undefined, done: true });
    assert.equal((await mesh.publish("shop/text", "")).subscribers, 0);
    await mesh.close();
    await fails(mesh.publish("shop/text", ""), "closed");
  },

  async callbacks() {
    const mesh = await connect(url);
    const found = [];
    const all = new Promise((resolve) => {
      mesh.subscribe("c/+", (message) => {
        found.push(message.text);
        if (message.text === "2") throw new Error("a callback that fails ends nothing");
        if (found.length === 3) resolve();
      });
    });
    for (const text of ["1", "2", "3"]) await mesh.publish("c/x", text);
    await all;
    assert.deepEqual(found, ["1", "2", "3"]);
    await mesh.close();
  },

  async retained() {
    const mesh = await connect(url);
    assert.equal(await mesh.retained("last"), undefined);
    await mesh.publish("last", "value", { retain: true });
    assert.equal((await mesh.retained("last")).text, "value");
    const [first] = await take(await mesh.subscribe("last"), 1);
    assert(first.retained);
    const without = await mesh.subscribe("las+", { retained: false }).catch((error) => error);
    assert.equal(without.code, "invalid");
    await mesh.close();
  },

  async flow() {
    const mesh = await connect(url);
    const slow = await mesh.subscribe("flow", { credit: 4 });
    for (let count = 0; count < 50; count += 1) await mesh.publish("flow", String(count));
    const numbers = (await take(slow, 50)).map((message) => Number(message.text));
    assert.deepEqual(numbers, [...numbers.keys()]);
    const small = await mesh.subscribe("small", { buffer: 2 });
    for (let count = 0; count < 5; count += 1) await mesh.publish("small", String(count));
    assert.deepEqual((await take(small, 2)).map((message) => message.text), ["3", "4"]);
    assert.equal(small.dropped, 3);
    await mesh.close();
  },

  async requests() {
    const mesh = await connect(url);
    await fails(mesh.request("quote", "5"), "no_responders");
    const service = await mesh.serve("quote", async (call) => {
      if (call.text === "bad") throw new Error("no such item");
      if (call.text === "slow") {
        await new Promise((resolve) => call.signal.addEventListener("abort", resolve));
        await mesh.publish("was", "cancelled");
      }
      return { price: Number(call.text) * 2 };
    });
    assert.deepEqual((await mesh.request("quote", "5")).json(), { price: 10 });
    await assert.rejects(mesh.request("quote", "bad"), { code: "responder_failed", message: /no such item/ });
    assert.equal((await mesh.gather("quote", "1", { timeout: 2 })).length, 1);
    const was = await mesh.subscribe("was");
    const abort = new AbortController();
    const asked = mesh.request("quote", "slow", { signal: abort.signal, timeout: 60 });
    const refused = assert.rejects(asked);
    setTimeout(() => abort.abort(), 20);
    await refused;
    await take(was, 1);
    await fails(mesh.request("quote", "slow", { timeout: 0.05 }), "timed_out");
    await service.close();
    await fails(mesh.request("quote", "5"), "no_responders");
    await mesh.close();
  },

  async queues() {
    const mesh = await connect(url);
    await fails(mesh.consume("nowhere"), "not_found");
    await fails(mesh.declareQueue("work", { colour: "red" }), "invalid");
    await mesh.declareQueue("work", { bindings: ["work/#"], backoff_s: 0, max_deliveries: 3 });
    for (const text of ["1", "2", "3"]) assert.equal((await mesh.publish("work/x", text)).queues, 1);
    const jobs = await mesh.consume("work", { credit: 1 });
    const [first] = await take(jobs, 1);
    assert.equal(first.text, "1");
    await first.nack(0);
    const [again] = await take(jobs, 1);
    assert.equal(again.text, "1");
    assert.equal(again.attempts, 1);
    await again.extend(30);
    await again.ack();
    await fails(again.ack(), "not_found");
    const [second] = await take(jobs, 1);
    await second.reject("nobody can");
    for await (const job of jobs) {
      assert.equal(job.text, "3");
      await job.ack();
      break; // closes the consumer
    }
    assert.equal((await mesh.describeQueue("work")).statistics.messages, 0);
    await mesh.close();
  },

  /** Canaries of a queue and of a group get what is for them, and the share can be changed. */
  async canaries() {
    const mesh = await connect(url);
    const { definition } = await mesh.declareQueue("new", { canary_share: 1 });
    assert.equal(definition.canary_share, 1);
    const other = await mesh.consume("new");
    const canary = await mesh.consume("new", { canary: true });
    await mesh.publish("$queue/new", "1");
    const [first] = await take(canary, 1);
    await first.nack(0);
    const [again] = await take(other, 1);
    assert.equal(again.attempts, 1);
    await again.ack();
    await mesh.declareQueue("new", { canary_share: 0 });
    await mesh.publish("$queue/new", "2");
    assert.equal((await take(other, 1))[0].text, "2");
    assert.equal((await mesh.describeQueue("new")).statistics.delivered_to_canaries, 1);
    const members = [await mesh.subscribe("t", { group: "g" }), await mesh.subscribe("t", { group: "g", canaryShare: 1 })];
    for (const text of ["1", "2", "3"]) await mesh.publish("t", text);
    assert.deepEqual((await take(members[1], 3)).map((message) => message.text), ["1", "2", "3"]);
    await fails(mesh.subscribe("t", { canaryShare: 0.5 }), "invalid");
    await mesh.close();
  },

  async streams() {
    const mesh = await connect(url);
    await mesh.declareStream("orders", { keyed: true });
    assert.equal(await mesh.append("orders", { order: 7 }, { key: "7", expected: 0 }), 1);
    await fails(mesh.append("orders", "", { key: "7", expected: 0 }), "wrong_version");
    assert.equal(await mesh.append("orders", "two", { key: "8" }), 2);
    const records = await mesh.read("orders");
    assert.deepEqual(records.map((record) => [record.sequence, record.key]), [[1, "7"], [2, "8"]]);
    assert(Math.abs(records[0].time.getTime() - Date.now()) < 60_000);
    assert.deepEqual((await mesh.read("orders", { key: "8" })).map((record) => record.text), ["two"]);
    const follower = await mesh.follow("orders", { after: 1, credit: 2 });
    for (let count = 3; count < 20; count += 1) await mesh.append("orders", String(count));
    const followed = (await take(follower, 18)).map((record) => record.sequence);
    assert.deepEqual(followed, Array.from({ length: 18 }, (_, index) => index + 2));
    const member = await mesh.follow("orders", { after: 0, group: "mailer", credit: 5 });
    for (const record of await take(member, 5)) await record.ack();
    const { statistics } = await mesh.describeStream("orders");
    assert.equal(statistics.groups[0].position, 5);
    await mesh.close();
  },

  /** The test kills the node and starts another one on the same port and data. */
  async reconnects() {
    const mesh = await connect(url, { backoff: 0.05, backoffMax: 0.2 });
    const states = [];
    mesh.addEventListener("state", ({ state }) => states.push(state));
    await mesh.declareStream("log", { bindings: ["log/+"] });
    await mesh.declareQueue("jobs");
    const messages = await mesh.subscribe("news/#");
    const follower = await mesh.follow("log", { after: 0 });
    const jobs = await mesh.consume("jobs", { credit: 3 });
    await mesh.serve("echo", (call) => call.text);
    await mesh.publish("log/a", "1");
    await mesh.publish("$queue/jobs", "job");
    const [record] = await take(follower, 1);
    assert.equal(record.sequence, 1);
    const [job] = await take(jobs, 1);
    await tell("kill");
    const published = Array.from({ length: 20 }, (_, index) => mesh.publish("log/a", String(index + 2)));
    await assert.rejects(job.ack(), { code: "connection_lost" });
    await tell("start");
    await Promise.all(published);
    const rest = await take(follower, 20);
    assert.deepEqual(rest.map((each) => each.text), Array.from({ length: 20 }, (_, index) => String(index + 2)));
    assert.deepEqual(rest.map((each) => each.sequence), Array.from({ length: 20 }, (_, index) => index + 2));
    const [back] = await take(jobs, 1);
    await back.ack();
    await mesh.publish("news/x", "after");
    assert.equal((await take(messages, 1))[0].text, "after");
    assert.equal((await mesh.request("echo", "there?")).text, "there?");
    assert.deepEqual(states, ["connecting", "open"]);
    await mesh.close();
  },

  /** The node is stopped under publishes again and again: every one is taken exactly once. */
  async exactlyOnce() {
    const mesh = await connect(url, { backoff: 0.02, backoffMax: 0.1 });
    await mesh.declareStream("once", { bindings: ["once"] });
    let number = 0;
    for (let round = 0; round < 4; round += 1) {
      const published = [];
      for (let count = 0; count < 200; count += 1) published.push(mesh.publish("once", String((number += 1))));
      await tell("kill and start");
      await Promise.all(published);
    }
    const records = await mesh.read("once", { count: 2000 });
    assert.deepEqual(records.map((record) => Number(record.text)), Array.from({ length: 800 }, (_, index) => index + 1));
    await mesh.close();
  },

  async refused() {
    await fails(connect(url, { user: "nobody", password: "wrong" }), "not_authenticated");
    await fails(connect("ws://127.0.0.1:2/ws", { attemptsMax: 2, backoff: 0.01 }), "unreachable");
    await fails(connect("http://[", { attemptsMax: 1 }), "invalid");
  },

  async failsAtOnce() {
    const mesh = await connect(url, { reconnect: false });
    const messages = await mesh.subscribe("a");
    await tell("kill");
    await assert.rejects(messages.next(), { code: "connection_lost" });
    await fails(mesh.publish("a", ""), "connection_lost");
    assert.equal(mesh.state, "closed");
  },

  async takenOver() {
    const first = await connect(url, { client: "same", backoff: 0.01 });
    const ended = new Promise((resolve) => first.addEventListener("state", resolve));
    const second = await connect(url, { client: "same" });
    assert.equal((await ended).state, "closed");
    await fails(first.publish("a", ""), "taken_over");
    await second.publish("a", "");
    await second.close();
  },
};

await cases[name]();
console.log("passed");
process.exit(0);
