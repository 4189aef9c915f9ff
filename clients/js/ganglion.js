/**
 * Ganglion for browsers and Node ≥ 22: one module, no dependencies.
 *
 * It speaks the native protocol (docs/protocol.md) as JSON over a WebSocket. A `Mesh` outlives its
 * connections: when one is lost it connects again, with growing pauses, and goes on where it was.
 * Subscriptions, consumers, services and followers are opened again; followers resume behind the last
 * record that was taken; publishes that were not confirmed are sent again under their old ids, by which
 * the node knows those that it has. Everything else that waits for an answer then fails with
 * `connection_lost`, since nobody can know whether it was done.
 *
 *     import { connect } from "./ganglion.js";
 *     const mesh = await connect("ws://localhost:8080/ws");
 *     const orders = await mesh.subscribe("orders/#");
 *     await mesh.publish("orders/created", { order: 7 });
 *     for await (const message of orders) console.log(message.topic, message.json());
 */

const VERSION = 1;
const SUBPROTOCOL = "ganglion.json";

/** Operations of the protocol, by docs/protocol.md section 4. */
const OP = Object.freeze({
  message: 1, delivery: 2, jobs: 3, records: 4, call: 5, reply: 6, cancelled: 7, ended: 8, dropped: 9,
  drain: 10, ok: 11, error: 12, confirmed: 13, ping: 14, pong: 15, goodbye: 16, credit: 17,
  hello: 32, publish: 33, subscribe: 35, close: 36,
  consume: 40, ack: 41, nack: 42, reject: 43, extend: 44,
  queueDeclare: 45, queueDescribe: 46,
  append: 60, appendBatch: 61, read: 62, follow: 63, streamDeclare: 64, streamDescribe: 65,
  request: 80, gather: 81, serve: 82, answer: 83, fail: 84, cancel: 85,
  retainedGet: 90,
});

/** Errors after which connecting again would only be refused again. */
const FINAL = new Set(["not_authenticated", "not_allowed", "unsupported_version", "taken_over"]);
/** Faults of this client: said once, loudly, and not repeated. */
const FAULTS = new Set(["malformed", "too_large", "protocol"]);

/** What went wrong: `code` is stable (docs/protocol.md section 5), `message` is for people. */
export class GanglionError extends Error {
  constructor(code, message, details = undefined) {
    super(message);
    this.name = "GanglionError";
    this.code = code;
    this.details = details;
  }
}

const lost = (why) =>
  new GanglionError("connection_lost", `${why}; whether it was done is not known`);

// -- payloads -----------------------------------------------------------------------------------

const encoder = new TextEncoder();
const strict = new TextDecoder("utf-8", { fatal: true });
const lenient = new TextDecoder("utf-8");

function toBase64(bytes) {
  let binary = "";
  for (let at = 0; at < bytes.length; at += 0x8000) {
    binary += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  }
  return btoa(binary);
}

const fromBase64 = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0));

/** A payload as it is written on the wire, and its content type when it says itself what it is. */
function encodePayload(value) {
  if (typeof value === "string") return [value, undefined];
  if (value instanceof ArrayBuffer) value = new Uint8Array(value);
  if (ArrayBuffer.isView(value)) {
    const bytes = new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
    try {
      const text = strict.decode(bytes);
      // A byte order mark is removed by decoding: then only base64 keeps the bytes as they are.
      if (encoder.encode(text).length === bytes.length) return [text, undefined];
    } catch {
      // not UTF-8
    }
    return [{ base64: toBase64(bytes) }, undefined];
  }
  const text = JSON.stringify(value);
  if (text === undefined) throw new TypeError("a payload is a string, bytes, or what JSON can express");
  return [text, "application/json"];
}

/** Properties on the wire, from options in the spelling of JavaScript. */
function encodeProperties(options, contentType) {
  const properties = {};
  const names = {
    key: "key", headers: "headers", contentType: "content_type", expires: "expires_s", delay: "delay_s",
    priority: "priority", id: "message_id", replyTo: "reply_to", correlation: "correlation", retain: "retain",
  };
  for (const [name, property] of Object.entries(names)) {
    if (options[name] !== undefined) properties[property] = options[name];
  }
  if (properties.correlation !== undefined) properties.correlation = encodePayload(properties.correlation)[0];
  if (contentType && properties.content_type === undefined) properties.content_type = contentType;
  return Object.keys(properties).length ? properties : null;
}

/** Something that was published, appended, asked or answered. */
export class Message {
  constructor(topic, payload, properties) {
    this.topic = topic;
    this._payload = payload;
    this._properties = properties ?? {};
  }

  /** The payload as bytes. */
  get bytes() {
    return typeof this._payload === "string" ? encoder.encode(this._payload) : fromBase64(this._payload.base64);
  }

  /** The payload as text; bytes that are not UTF-8 become U+FFFD. */
  get text() {
    return typeof this._payload === "string" ? this._payload : lenient.decode(this.bytes);
  }

  /** The payload as the JSON value that it is. Throws SyntaxError when it is none. */
  json() {
    return JSON.parse(this.text);
  }

  get key() { return this._properties.key; }
  get headers() {
    const headers = this._properties.headers ?? {};
    return Array.isArray(headers) ? Object.fromEntries(headers) : headers;
  }
  get contentType() { return this._properties.content_type; }
  get replyTo() { return this._properties.reply_to; }
  /** Whether it is a last value that the node had kept, and not new. */
  get retained() { return this._properties.retained === true; }
}

// -- topics -------------------------------------------------------------------------------------

/** Whether a topic filter matches a topic: `+` one level, `#` all further ones, `$` not by wildcards. */
export function matches(filter, topic) {
  if (filter === topic) return true;
  const wanted = filter.split("/");
  const found = topic.split("/");
  if (topic.startsWith("$") && (wanted[0] === "+" || wanted[0] === "#")) return false;
  for (let level = 0; level < wanted.length; level += 1) {
    if (wanted[level] === "#") return true;
    if (level >= found.length) return false;
    if (wanted[level] !== "+" && wanted[level] !== found[level]) return false;
  }
  return wanted.length === found.length;
}

// -- channels -----------------------------------------------------------------------------------

/**
 * What comes from the node until it is closed, for `for await` or for a callback.
 *
 * What waits to be taken is bounded by `buffer`; where the node is not told to wait, the oldest goes and is
 * counted in `dropped`.
 */
class Channel {
  constructor(mesh, buffer) {
    this._mesh = mesh;
    this._buffer = buffer;
    this._waiting = [];
    this._takers = [];
    this._error = undefined;
    this._closed = false;
    this._id = 0;
    /** How many messages were lost because nobody took them in time, here or at the node. */
    this.dropped = 0;
    this._ready = new Promise((resolve, reject) => Object.assign(this, { _isReady: resolve, _isRefused: reject }));
    this._ready.catch(() => undefined); // it matters only to who opens the channel
    /** Settled when the channel has ended: with the error that ended it, or undefined. */
    this.ended = new Promise((resolve) => Object.assign(this, { _hasEnded: resolve }));
  }

  _open(id) {
    this._id = id;
    this._isReady(this);
  }

  _give(item) {
    if (this._closed) return;
    const taker = this._takers.shift();
    if (taker) {
      this._taken(item);
      taker.resolve({ value: item, done: false });
      return;
    }
    this._waiting.push(item);
    if (this._buffer && this._waiting.length > this._buffer) {
      this._waiting.shift();
      this.dropped += 1;
    }
  }

  /** The program has it now. */
  _taken(_item) {}

  _end(error) {
    if (this._closed) return;
    this._closed = true;
    this._error = error;
    this._mesh._channels.delete(this);
    this._isRefused(error ?? new GanglionError("closed", "the channel was closed"));
    this._hasEnded(error);
    for (const taker of this._takers.splice(0)) {
      if (error) taker.reject(error);
      else taker.resolve({ value: undefined, done: true });
    }
  }

  /** Call back for each, one after the other; what a callback throws ends nothing. */
  async _run(callback) {
    try {
      for await (const item of this) {
        try {
          await callback(item);
        } catch (error) {
          console.error("ganglion: a callback has failed", error);
        }
      }
    } catch {
      // why the channel ended is in `ended`
    }
  }

  /** The next one; at the end `{ done: true }`. Rejects once if the channel ended with an error. */
  next() {
    if (this._waiting.length) {
      const item = this._waiting.shift();
      this._taken(item);
      return Promise.resolve({ value: item, done: false });
    }
    if (this._closed) {
      const error = this._error;
      this._error = undefined;
      return error ? Promise.reject(error) : Promise.resolve({ value: undefined, done: true });
    }
    return new Promise((resolve, reject) => this._takers.push({ resolve, reject }));
  }

  [Symbol.asyncIterator]() { return this; }

  /** Leaving a `for await` closes the channel. */
  async return() {
    await this.close();
    return { value: undefined, done: true };
  }

  /** No more of it. Harmless the second time. */
  async close() {
    if (this._closed) return;
    const id = this._id;
    this._end();
    if (id && this._mesh._isOpen) await this._mesh._ask(OP.close, [id]).catch(() => undefined);
    this._mesh._byId.delete(id);
  }
}

class Subscription extends Channel {
  constructor(mesh, filter, options) {
    super(mesh, options.credit ? 0 : options.buffer ?? 1000);
    this.filter = filter;
    this._options = options;
    this._isPlain = !options.group && !options.credit && options.own !== false;
    this._used = 0;
  }

  _frame() {
    const { group, canaryShare, retained, credit, own } = this._options;
    const options = {};
    if (group !== undefined) options.group = group;
    if (canaryShare !== undefined) options.canary_share = canaryShare;
    if (retained === false) options.retained = "none";
    if (credit !== undefined) options.credit = credit;
    if (own !== undefined) options.own = own;
    return [OP.subscribe, [this.filter, options]];
  }

  _open(id) {
    super._open(id);
    this._used = this._waiting.length; // these are taken without credit of the new connection
  }

  _taken(_item) {
    const credit = this._options.credit;
    if (!credit) return;
    this._used += 1;
    if (this._used * 2 >= credit) {
      this._mesh._send([OP.credit, this._id, this._used]);
      this._used = 0;
    }
  }

  _receive(frame) {
    if (frame[0] === OP.dropped) this.dropped += frame[2];
    else this._give(new Message(frame[2], frame[3], frame[4]));
  }
}

/** A message of a queue, leased to this client until it settles it or the lease runs out. */
export class Job extends Message {
  constructor(consumer, connection, lease, topic, payload, properties, attempts) {
    super(topic, payload, properties);
    this._consumer = consumer;
    this._connection = connection;
    this._lease = lease;
    /** How often it was delivered in vain before. */
    this.attempts = attempts ?? 0;
  }

  /** Done: it is gone when this returns. */
  ack() { return this._settle(OP.ack); }
  /** Not done: let it come again, after the queue's backoff or in `delay` seconds. */
  nack(delay = undefined) { return this._settle(OP.nack, delay); }
  /** Nobody can do it: to the dead letter queue, with this reason. */
  reject(reason = undefined) { return this._settle(OP.reject, reason); }
  /** Needed for so many seconds from now on. */
  extend(seconds) { return this._settle(OP.extend, seconds); }

  async _settle(operation, argument) {
    const mesh = this._consumer._mesh;
    if (mesh._connection !== this._connection) {
      throw new GanglionError("connection_lost", "the connection that had the message is gone, and it comes again");
    }
    const rest = argument === undefined ? [] : [argument];
    const result = await mesh._ask(operation, [this._consumer._id, this._lease, ...rest]);
    if (result.gone) throw new GanglionError("not_found", "the lease has run out: the message comes again");
  }
}

class Consumer extends Channel {
  constructor(mesh, queue, options) {
    super(mesh, 0); // the credit bounds what waits
    this.queue = queue;
    this._options = options;
  }

  _frame() {
    const options = { credit: this._options.credit ?? 10 };
    if (this._options.declare) options.declare = true;
    if (this._options.canary) options.canary = true;
    return [OP.consume, [this.queue, options]];
  }

  _open(id) {
    super._open(id);
    this._waiting = []; // leases of the connection that is gone
  }

  _receive(frame) {
    for (const job of frame[2]) this._give(new Job(this, this._mesh._connection, ...job));
  }
}

/** A record of a stream. */
export class StreamRecord extends Message {
  constructor(sequence, time, topic, payload, key, properties) {
    super(topic, payload, key == null ? properties : { ...properties, key });
    this.sequence = sequence;
    /** When it was appended. */
    this.time = new Date(time * 1000);
  }
}

function recordsOf(columns) {
  const [sequences, times, topics, payloads, keys, properties] = columns;
  const at = (column, index) => (Array.isArray(column) ? column[index] : column);
  return payloads.map((payload, index) => new StreamRecord(
    Array.isArray(sequences) ? sequences[index] : sequences + index,
    at(times, index), at(topics, index), payload, at(keys, index), at(properties, index),
  ));
}

class Follower extends Channel {
  constructor(mesh, stream, options) {
    super(mesh, 0); // the credit bounds what waits
    this.stream = stream;
    this._options = options;
    this._credit = options.credit ?? 1000;
    this._used = 0;
    this._began = false;
    /** The sequence of the last record that was taken; following resumes behind it. */
    this.position = options.after;
  }

  _frame() {
    const { from, group, declare } = this._options;
    const options = { credit: this._credit };
    if (this.position !== undefined) options.after = this.position;
    else if (from !== undefined) options.from_s = from instanceof Date ? from.getTime() / 1000 : from;
    if (group !== undefined) options.group = group;
    if (declare) options.declare = true;
    return [OP.follow, [this.stream, options]];
  }

  _open(id, result) {
    super._open(id);
    this._waiting = []; // they come again
    this._used = 0;
    // From here on it is known where to resume, even if nothing comes before the connection is lost.
    if (this.position === undefined) this.position = result.position;
  }

  _taken(record) {
    if (!this._options.group) {
      this.position = record.sequence;
      this._used += 1;
      if (this._used * 2 >= this._credit) {
        this._mesh._send([OP.credit, this._id, this._used]);
        this._used = 0;
      }
    }
  }

  _receive(frame) {
    for (const record of recordsOf(frame.slice(2))) {
      if (this._options.group) {
        const connection = this._mesh._connection;
        record.ack = async () => {
          if (this._mesh._connection !== connection) throw lost("the connection that had the record is gone");
          await this._mesh._ask(OP.ack, [this._id, [record.sequence]]);
        };
      }
      this._give(record);
    }
  }
}

class Service extends Channel {
  constructor(mesh, filter, options, handler) {
    super(mesh, 0);
    this.filter = filter;
    this._options = options;
    this._handler = handler;
    this._calls = new Map();
  }

  _frame() {
    const options = {};
    if (this._options.group !== undefined) options.group = this._options.group;
    if (this._options.credit !== undefined) options.credit = this._options.credit;
    return [OP.serve, [this.filter, options]];
  }

  _receive(frame) {
    if (frame[0] === OP.cancelled) this._calls.get(frame[2])?.abort(frame[3]);
    else this._answer(frame[2], new Message(...frame.slice(3)));
  }

  async _answer(call, message) {
    const abort = new AbortController();
    const connection = this._mesh._connection;
    this._calls.set(call, abort);
    message.signal = abort.signal;
    let answer;
    try {
      const [payload, contentType] = encodePayload((await this._handler(message)) ?? "");
      answer = [OP.answer, 0, this._id, call, payload, encodeProperties({}, contentType)];
    } catch (error) {
      answer = [OP.fail, 0, this._id, call, String(error?.message ?? error)];
      if (typeof error?.code === "string") answer.push(error.code);
    }
    this._calls.delete(call);
    if (this._mesh._connection === connection && !abort.signal.aborted) this._mesh._send(answer);
  }
}

// -- the mesh -----------------------------------------------------------------------------------

/** A client of the mesh; `connect` makes it. Its `state` changes are `state` events. */
export class Mesh extends EventTarget {
  constructor(addresses, options) {
    super();
    this._addresses = addresses;
    this._options = options;
    this._turn = 0;
    this._nextId = 1;
    this._producer = options.producer ?? crypto.randomUUID();
    this._channels = new Set();
    this._byId = new Map(); // channels of this connection
    this._answers = new Map(); // id → what to do with the answer
    this._publishes = new Map(); // id → frame and promise, in order; they outlive connections
    this._connection = undefined;
    this._attempts = 0;
    this._timers = new Set();
    /** `connecting`, `open`, or `closed` for good. */
    this.state = "connecting";
    /** What the node said of itself; see docs/protocol.md, hello. */
    this.greeting = undefined;
  }

  get _isOpen() { return this.state === "open"; }

  // -- messages --

  /** Publish, and wait until the node has it: how many subscribers, queues and streams it went to. */
  publish(topic, payload, options = {}) {
    const [body, contentType] = encodePayload(payload);
    const id = this._takeId();
    const frame = [OP.publish, id, topic, body, encodeProperties(options, contentType)];
    return new Promise((resolve, reject) => {
      if (this.state === "closed") {
        reject(this._whyClosed());
        return;
      }
      if (this._publishes.size >= this._options.publishesMax) {
        reject(new GanglionError("full", `${this._options.publishesMax} publishes wait for the node already`));
        return;
      }
      this._publishes.set(id, { frame, resolve, reject });
      if (this._isOpen) this._send(frame);
    });
  }

  /** Publish without confirmation; false when there is no connection just now, and nothing was sent. */
  send(topic, payload, options = {}) {
    const [body, contentType] = encodePayload(payload);
    return this._isOpen && this._send([OP.message, topic, body, encodeProperties(options, contentType)]);
  }

  /** Messages that are published to matching topics, for `for await` or for `callback`. */
  subscribe(filter, callback = undefined, options = {}) {
    if (typeof callback === "object") [callback, options] = [undefined, callback];
    return this._openChannel(new Subscription(this, filter, options), callback);
  }

  /** The last value of a topic that the node has kept; undefined when there is none. */
  async retained(topic) {
    const found = await this._ask(OP.retainedGet, [topic]);
    return found ? new Message(topic, found[0], found[1]) : undefined;
  }

  // -- requests --

  /** Ask whoever serves the topic, and wait for the reply. Fails at once when nobody does. */
  async request(topic, payload, options = {}) {
    const [body, contentType] = encodePayload(payload);
    const wishes = { timeout_s: options.timeout ?? 5 };
    if (options.repeat) wishes.repeat = true;
    return this._ask(OP.request, [topic, body, encodeProperties(options, contentType), wishes], {
      signal: options.signal,
      onReply: (reply) => ({ done: true, value: new Message(topic, ...reply) }),
    });
  }

  /** Ask everybody who serves the topic: the replies that came until `count`, or the timeout in seconds. */
  async gather(topic, payload, options = {}) {
    const [body, contentType] = encodePayload(payload);
    const wishes = { timeout_s: options.timeout ?? 5 };
    if (options.count) wishes.count = options.count;
    const replies = [];
    await this._ask(OP.gather, [topic, body, encodeProperties(options, contentType), wishes], {
      signal: options.signal,
      onReply: (reply) => {
        replies.push(new Message(topic, ...reply));
        return { done: false };
      },
    });
    return replies;
  }

  /** Answer requests: what `handler` returns is the reply; what it throws, the reason why there is none. */
  serve(filter, handler, options = {}) {
    return this._openChannel(new Service(this, filter, options, handler));
  }

  // -- queues and streams --

  /** Make a queue, or change the options that are given (docs/queues.md). */
  declareQueue(name, options = {}) { return this._ask(OP.queueDeclare, [name, options]); }
  /** Its definition, its statistics, and whether it is paused. */
  describeQueue(name) { return this._ask(OP.queueDescribe, [name]); }

  /** Take messages of a queue; each has to be settled with `ack`, `nack` or `reject`. */
  consume(queue, callback = undefined, options = {}) {
    if (typeof callback === "object") [callback, options] = [undefined, callback];
    return this._openChannel(new Consumer(this, queue, options), callback);
  }

  /** Make a stream, or change the options that are given (docs/streams.md). */
  declareStream(name, options = {}) { return this._ask(OP.streamDeclare, [name, options]); }
  /** Its definition and its statistics. */
  describeStream(name) { return this._ask(OP.streamDescribe, [name]); }

  /** Append a record; its sequence. With `expected` only if that is the last version of its key. */
  async append(stream, payload, options = {}) {
    const [body, contentType] = encodePayload(payload);
    const wishes = {};
    if (options.topic !== undefined) wishes.topic = options.topic;
    if (options.declare) wishes.declare = true;
    if (options.expected !== undefined) wishes.expected = { [options.key]: options.expected };
    const properties = encodeProperties(options, contentType);
    return (await this._ask(OP.append, [stream, body, properties, wishes])).last;
  }

  /** Records behind the sequence `after`, at most `count`. */
  async read(stream, options = {}) {
    const wishes = {};
    for (const name of ["after", "key", "count", "bytes"]) {
      if (options[name] !== undefined) wishes[name] = options[name];
    }
    if (options.from !== undefined) {
      wishes.from_s = options.from instanceof Date ? options.from.getTime() / 1000 : options.from;
    }
    return recordsOf((await this._ask(OP.read, [stream, wishes])).records);
  }

  /** Records behind `after` or since `from`, and then what is appended; without either, only that. */
  follow(stream, callback = undefined, options = {}) {
    if (typeof callback === "object") [callback, options] = [undefined, callback];
    return this._openChannel(new Follower(this, stream, options), callback);
  }

  /** Say goodbye and close for good. What waits for an answer fails with `closed`. */
  async close() {
    if (this.state === "closed") return;
    if (this._isOpen) this._send([OP.goodbye]);
    const socket = this._connection;
    this._stop(undefined);
    socket?.close(1000);
  }

  // -- asking --

  _takeId() { return this._nextId++; }

  _send(frame) {
    const socket = this._connection;
    if (socket?.readyState !== WebSocket.OPEN) return false;
    while (frame.length && frame[frame.length - 1] == null) frame.pop();
    socket.send(JSON.stringify(frame));
    return true;
  }

  /** Ask the node; its answer. `onReply` is given what comes before the answer, and may end the wait. */
  async _ask(operation, rest, { signal, onReply } = {}) {
    if (this.state === "closed") throw this._whyClosed();
    signal?.throwIfAborted();
    await this._whenOpen();
    const id = this._takeId();
    return new Promise((resolve, reject) => {
      const abort = () => {
        this._answers.delete(id);
        this._send([OP.cancel, 0, id]);
        reject(signal.reason);
      };
      signal?.addEventListener("abort", abort, { once: true });
      const settle = (how) => (value) => {
        signal?.removeEventListener("abort", abort);
        this._answers.delete(id);
        how(value);
      };
      this._answers.set(id, { resolve: settle(resolve), reject: settle(reject), onReply });
      this._send([operation, id, ...rest]);
    });
  }

  _whenOpen() {
    if (this._isOpen) return Promise.resolve();
    if (this.state === "closed") return Promise.reject(this._whyClosed());
    return new Promise((resolve, reject) => {
      const look = () => {
        if (this.state === "connecting") return;
        this.removeEventListener("state", look);
        if (this._isOpen) resolve();
        else reject(this._whyClosed());
      };
      this.addEventListener("state", look);
    });
  }

  _whyClosed() {
    return this._reason ?? new GanglionError("closed", "this mesh is closed");
  }

  async _openChannel(channel, callback = undefined) {
    if (this.state === "closed") throw this._whyClosed();
    this._channels.add(channel);
    if (this._isOpen) this._announce(channel);
    await channel._ready;
    if (callback) channel._run(callback);
    return channel;
  }

  /** Open the channel on this connection; one that is lost before the answer leaves it to the next. */
  _announce(channel) {
    const [operation, rest] = channel._frame();
    const id = this._takeId();
    this._byId.set(id, channel); // what comes for it may come right behind the answer
    this._answers.set(id, {
      resolve: (result) => {
        this._answers.delete(id);
        channel._open(id, result);
        if (channel._closed) this._send([OP.close, 0, id]); // meanwhile
      },
      reject: (error) => {
        this._answers.delete(id);
        this._byId.delete(id);
        if (error.code !== "connection_lost") channel._end(error);
      },
    });
    this._send([operation, id, ...rest]);
  }

  // -- the connection --

  _connect() {
    const url = this._addresses[this._turn % this._addresses.length];
    let socket;
    try {
      socket = new WebSocket(url, SUBPROTOCOL);
    } catch (error) {
      this._stop(new GanglionError("invalid", `${url} is no WebSocket address: ${error.message}`));
      return;
    }
    this._connection = socket;
    const isCurrent = () => this._connection === socket;
    this._heard = Date.now();
    socket.onopen = () => isCurrent() && this._greet();
    socket.onmessage = ({ data }) => {
      if (!isCurrent() || typeof data !== "string") return;
      this._heard = Date.now();
      for (const line of data.split("\n")) if (line) this._receive(JSON.parse(line));
    };
    socket.onclose = ({ code, reason }) => isCurrent() && this._lost(reason || `the connection to ${url} ended (${code})`);
    // Node ends an attempt that failed with an error alone; browsers let the same be closed.
    socket.onerror = () => isCurrent() && !this._isOpen && this._drop(`cannot connect to ${url}`);
    this._after(this._options.connectTimeout * 1000, () => {
      if (isCurrent() && !this._isOpen) {
        this._drop(`${url} did not answer within ${this._options.connectTimeout} s`);
      }
    });
  }

  /** Give the connection up without waiting for the other side. */
  _drop(why) {
    const socket = this._connection;
    this._lost(why);
    socket?.close();
  }

  _greet() {
    const { client, user, password, token } = this._options;
    const hello = { producer: this._producer, agent: "ganglion.js" };
    if (client !== undefined) hello.client = client;
    if (user !== undefined) hello.user = user;
    if (password !== undefined) hello.password = encodePayload(password)[0];
    if (token !== undefined) hello.token = token;
    const id = this._takeId();
    this._answers.set(id, {
      resolve: (greeting) => {
        this._answers.delete(id);
        this._opened(greeting);
      },
      reject: (error) => {
        this._answers.delete(id);
        if (error.code !== "connection_lost") this._refused(error);
      },
    });
    this._send([OP.hello, id, VERSION, hello]);
  }

  _opened(greeting) {
    this.greeting = greeting;
    this._attempts = 0;
    if (greeting.sequence >= this._nextId) this._nextId = greeting.sequence + 1;
    // Channels first: what the publishes lead to should not be missed.
    for (const channel of this._channels) this._announce(channel);
    for (const { frame } of this._publishes.values()) this._send([...frame]);
    this._watch(greeting.keep_alive_s);
    this._become("open");
  }

  _watch(keepAliveS) {
    if (!keepAliveS) return;
    const socket = this._connection;
    const look = () => {
      if (this._connection !== socket) return;
      const silent = Date.now() - this._heard;
      if (silent >= keepAliveS * 1500) {
        this._drop(`nothing came for ${keepAliveS * 1.5} s`);
        return;
      }
      if (silent >= keepAliveS * 1000) this._send([OP.ping]);
      this._after(keepAliveS * 500, look);
    };
    this._after(keepAliveS * 500, look);
  }

  _refused(error) {
    if (FINAL.has(error.code) || FAULTS.has(error.code)) this._stop(error);
    else this._drop(error.message);
  }

  _lost(why) {
    if (this.state === "closed") return;
    this._connection = undefined;
    this._byId.clear();
    for (const { reject } of [...this._answers.values()]) reject(lost(why));
    this._attempts += 1;
    this._turn += 1;
    if (!this._options.reconnect && this.greeting !== undefined) {
      this._stop(new GanglionError("connection_lost", why));
      return;
    }
    if (this._options.attemptsMax && this._attempts >= this._options.attemptsMax) {
      this._stop(new GanglionError("unreachable", `${why}; gave up after ${this._attempts} attempts`));
      return;
    }
    this._become("connecting", why);
    // Doubled each time, and spread, so that clients of a node that was gone do not come back together.
    const most = Math.min(this._options.backoffMax, this._options.backoff * 2 ** (this._attempts - 1));
    this._after(most * 1000 * (0.5 + 0.5 * Math.random()), () => {
      if (this.state === "connecting" && this._connection === undefined) this._connect();
    });
  }

  _stop(error) {
    if (this.state === "closed") return;
    this._reason = error;
    const socket = this._connection;
    this._connection = undefined;
    const reason = error ?? new GanglionError("closed", "this mesh is closed");
    for (const { reject } of [...this._answers.values()]) reject(reason);
    for (const { reject } of this._publishes.values()) reject(reason);
    this._answers.clear();
    this._publishes.clear();
    for (const channel of [...this._channels]) channel._end(error);
    for (const timer of this._timers) clearTimeout(timer);
    this._timers.clear();
    if (error) socket?.close();
    this._become("closed", error?.message);
  }

  _become(state, why = undefined) {
    if (state === this.state) return;
    this.state = state;
    const event = new Event("state");
    event.state = state;
    event.reason = why;
    this.dispatchEvent(event);
  }

  _after(delayMs, callback) {
    const timer = setTimeout(() => {
      this._timers.delete(timer);
      callback();
    }, delayMs);
    this._timers.add(timer);
  }

  // -- what comes --

  _receive(frame) {
    switch (frame[0]) {
      case OP.message: {
        const [, topic, payload, properties] = frame;
        const found = new Set(); // a subscription that is announced again may stand here twice
        for (const channel of this._byId.values()) {
          if (channel._isPlain && matches(channel.filter, topic)) found.add(channel);
        }
        for (const channel of found) channel._give(new Message(topic, payload, properties));
        break;
      }
      case OP.delivery: case OP.jobs: case OP.records: case OP.call: case OP.cancelled: case OP.dropped:
        this._byId.get(frame[1])?._receive(frame);
        break;
      case OP.ended: {
        const channel = this._byId.get(frame[1]);
        this._byId.delete(frame[1]);
        channel?._end(new GanglionError(frame[2], frame[3]));
        break;
      }
      case OP.reply: {
        const answer = this._answers.get(frame[1]);
        const { done, value } = answer?.onReply?.(frame.slice(2)) ?? {};
        if (done) answer.resolve(value);
        break;
      }
      case OP.ok:
        this._answers.get(frame[1])?.resolve(frame[2]);
        break;
      case OP.confirmed:
        this._confirm(frame);
        break;
      case OP.error:
        this._failed(frame[1], new GanglionError(frame[2], frame[3], frame[4]));
        break;
      case OP.ping:
        this._send([OP.pong]);
        break;
      case OP.drain: {
        const { addresses } = frame[1] ?? {};
        const others = (addresses ?? []).filter((each) => /^wss?:/.test(each));
        if (others.length) [this._addresses, this._turn] = [others, -1];
        this._send([OP.goodbye]);
        this._drop("the node stops");
        break;
      }
      case OP.goodbye:
        this._drop("the node said goodbye");
        break;
      default: // of a later version
    }
  }

  _confirm([, first, last, subscribers, queues, streams]) {
    for (const [id, { resolve }] of this._publishes) {
      if (id > last) break;
      if (id < first) continue;
      this._publishes.delete(id);
      resolve({ subscribers: subscribers ?? null, queues: queues ?? null, streams: streams ?? null });
    }
  }

  _failed(id, error) {
    if (!id) {
      // It ends the connection; the node closes it.
      if (FINAL.has(error.code) || FAULTS.has(error.code)) this._stop(error);
      return;
    }
    const publish = this._publishes.get(id);
    this._publishes.delete(id);
    (publish ?? this._answers.get(id))?.reject(error);
  }
}

const DEFAULTS = {
  reconnect: true,
  backoff: 0.25,
  backoffMax: 15,
  attemptsMax: 0,
  connectTimeout: 10,
  publishesMax: 10_000,
};

/**
 * Connect to a node, or to the first one of several that answers.
 *
 * Rejects when the node refuses the client; while nothing answers it goes on trying, at most
 * `attemptsMax` times if that is set.
 */
export async function connect(addresses, options = {}) {
  const mesh = new Mesh([addresses].flat().map(String), { ...DEFAULTS, ...options });
  mesh._connect();
  await mesh._whenOpen();
  return mesh;
}
