// MQTT.js as a peer for the interop tests: requests as JSON lines on standard input, answers and
// received messages as JSON lines on standard output, as ../programs/lines.py says.

import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import mqtt from "mqtt";

const sessions = new Map();
const write = (line) => process.stdout.write(JSON.stringify(line) + "\n");

class Refused extends Error {
  constructor(code) {
    super(`refused with ${code}`);
    this.code = code;
  }
}

function toLibrary(wanted) {
  const properties = {};
  if (wanted.user) {
    properties.userProperties = {};
    for (const [name, value] of wanted.user) {
      const seen = properties.userProperties[name];
      properties.userProperties[name] = seen === undefined ? value : [seen, value].flat();
    }
  }
  if (wanted.response_topic !== undefined) properties.responseTopic = wanted.response_topic;
  if (wanted.correlation !== undefined) {
    properties.correlationData = Buffer.from(wanted.correlation, "base64");
  }
  if (wanted.content_type !== undefined) properties.contentType = wanted.content_type;
  return properties;
}

function fromLibrary(properties) {
  const found = {};
  if (properties?.userProperties) {
    found.user = Object.entries(properties.userProperties).flatMap(([name, values]) =>
      [values].flat().map((value) => [name, value]),
    );
  }
  if (properties?.responseTopic !== undefined) found.response_topic = properties.responseTopic;
  if (properties?.correlationData) {
    found.correlation = properties.correlationData.toString("base64");
  }
  if (properties?.contentType !== undefined) found.content_type = properties.contentType;
  return found;
}

function open(request) {
  const options = {
    host: request.host,
    port: request.port,
    protocol: (request.path ? "ws" : "mqtt") + (request.cafile ? "s" : ""),
    clientId: request.client_id,
    clean: request.clean,
    protocolVersion: request.version,
    reconnectPeriod: 0,
    connectTimeout: 10_000,
    resubscribe: false,
  };
  if (request.path) options.path = request.path;
  if (request.version === 3) options.protocolId = "MQIsdp";
  if (request.version === 5) options.properties = { sessionExpiryInterval: request.expiry_s };
  if (request.cafile) options.ca = readFileSync(request.cafile);
  if (request.cafile && request.path) options.wsOptions = { ca: options.ca };
  if (request.certfile) {
    options.cert = readFileSync(request.certfile);
    options.key = readFileSync(request.keyfile);
  }
  if (request.user !== null) {
    options.username = request.user;
    options.password = request.password;
  }
  if (request.will) {
    options.will = { ...request.will, payload: Buffer.from(request.will.payload, "base64") };
  }
  const client = mqtt.connect(options);
  client.on("message", (topic, payload, packet) =>
    write({
      session: request.session,
      topic,
      payload: payload.toString("base64"),
      qos: packet.qos,
      retain: packet.retain,
      properties: fromLibrary(packet.properties),
    }),
  );
  return new Promise((resolve, reject) => {
    client.once("error", (error) => {
      client.end(true);
      reject(typeof error.code === "number" ? new Refused(error.code) : error);
    });
    client.once("close", () => reject(new Error("closed before CONNACK")));
    client.once("connect", async (connack) => {
      client.on("error", () => {}); // a later error shows in what the test waits for
      sessions.set(request.session, client);
      let granted = [];
      if (request.filters.length > 0) {
        const wanted = Object.fromEntries(request.filters.map(([name, qos]) => [name, { qos }]));
        try {
          granted = (await client.subscribeAsync(wanted)).map((each) => each.qos);
        } catch (error) {
          reject(error);
          return;
        }
      }
      resolve({ granted, present: connack.sessionPresent });
    });
  });
}

async function answer(request) {
  const client = sessions.get(request.session);
  if (request.op === "open") return open(request);
  if (request.op === "publish") {
    const { qos, retain, topic } = request;
    const properties = toLibrary(request.properties);
    const options = Object.keys(properties).length ? { qos, retain, properties } : { qos, retain };
    await client.publishAsync(topic, Buffer.from(request.payload, "base64"), options);
  } else if (request.op === "close") {
    await client.endAsync();
  } else if (request.op === "abort") {
    client.stream.destroy();
  } else {
    throw new Error(`unknown operation ${request.op}`);
  }
  return {};
}

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  try {
    write({ id: request.id, result: await answer(request) });
  } catch (error) {
    if (error instanceof Refused) write({ id: request.id, refused: error.code });
    else write({ id: request.id, failed: String(error.stack ?? error) });
  }
}
process.exit(0);
