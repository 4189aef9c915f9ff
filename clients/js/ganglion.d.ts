/** Types of `ganglion.js`; what each thing does is said there. */

/** A payload to send: text, bytes, or anything that JSON can express. */
export type Payload = string | ArrayBuffer | ArrayBufferView | object | number | boolean | null;

export interface ConnectOptions {
  /** The client identifier; left out, the node makes one. */
  client?: string;
  user?: string;
  password?: string | Uint8Array;
  /** In place of user and password. */
  token?: string;
  /** A name for this sender, by which the node knows publishes that are sent again: 16 to 64 characters, random. */
  producer?: string;
  /** Connect again when a connection is lost. Default: true. */
  reconnect?: boolean;
  /** Seconds before the first new attempt; doubled each time. Default: 0.25. */
  backoff?: number;
  /** The longest pause, in seconds. Default: 15. */
  backoffMax?: number;
  /** Give up after so many attempts in a row; 0: never. Default: 0. */
  attemptsMax?: number;
  /** Seconds for one attempt. Default: 10. */
  connectTimeout?: number;
  /** How many publishes may wait for their confirmation. Default: 10,000. */
  publishesMax?: number;
}

export interface MessageOptions {
  /** What it is about: order in queues and streams, versions. */
  key?: string;
  headers?: Record<string, string>;
  contentType?: string;
  /** Seconds after which nobody needs it. */
  expires?: number;
  /** Seconds for which a queue keeps it back. */
  delay?: number;
  /** 0 to 255, for queues with priorities. */
  priority?: number;
  /** The publisher's name for it, by which a queue with deduplication knows it. */
  id?: string;
  replyTo?: string;
  correlation?: string | Uint8Array;
  /** Keep it as the topic's last value. */
  retain?: boolean;
}

export interface Receipt {
  /** How many targets of each kind it had; null where it had been taken before a connection was lost. */
  subscribers: number | null;
  queues: number | null;
  streams: number | null;
}

export interface SubscribeOptions {
  /** Share with the other members of this group. */
  group?: string;
  /** Be a canary of the group: this part of its messages, 0 to 1, chosen by key, goes to its canaries. */
  canaryShare?: number;
  /** Last values of matching topics first. Default: true. */
  retained?: boolean;
  /** Let no more than so many messages be on the way: the node waits for this program. */
  credit?: number;
  /** How many may wait to be taken before the oldest is dropped. Default: 1,000; not with `credit`. */
  buffer?: number;
  /** What this client publishes itself too. Default: true. */
  own?: boolean;
}

export interface ConsumeOptions {
  /** How many unsettled messages this client may have. Default: 10. */
  credit?: number;
  /** Make the queue with default options if it is not there. */
  declare?: boolean;
  /** Be a canary: get the share that the queue's option `canary_share` says. */
  canary?: boolean;
}

export interface FollowOptions {
  /** Begin behind this sequence; 0: with the first record. */
  after?: number;
  /** Begin with what came then or later: a Date, or Unix seconds. */
  from?: Date | number;
  /** Share the records with the members of this group, which keeps its position at the node. */
  group?: string;
  /** How many records may be on the way. Default: 1,000. */
  credit?: number;
  /** Make the stream with default options if it is not there. */
  declare?: boolean;
}

export interface RequestOptions extends MessageOptions {
  /** Seconds to wait. Default: 5. */
  timeout?: number;
  /** Another responder may be asked when the first one leaves without an answer. */
  repeat?: boolean;
  signal?: AbortSignal;
}

export interface GatherOptions extends RequestOptions {
  /** Enough after so many replies. */
  count?: number;
}

export interface AppendOptions extends MessageOptions {
  /** The sequence of the last record with this key, 0: there must be none. The stream has to be keyed. */
  expected?: number;
  topic?: string;
  declare?: boolean;
}

/** What went wrong: `code` is stable (docs/protocol.md section 5), `message` is for people. */
export class GanglionError extends Error {
  constructor(code: string, message: string, details?: unknown);
  readonly code: string;
  readonly details?: unknown;
}

export class Message {
  readonly topic: string;
  readonly bytes: Uint8Array;
  readonly text: string;
  readonly key?: string;
  readonly headers: Record<string, string>;
  readonly contentType?: string;
  readonly replyTo?: string;
  readonly retained: boolean;
  json<T = unknown>(): T;
}

/** A request that is to be answered; `signal` is aborted when nobody waits for the answer any more. */
export interface Call extends Message {
  readonly signal: AbortSignal;
}

export class Job extends Message {
  readonly attempts: number;
  ack(): Promise<void>;
  nack(delay?: number): Promise<void>;
  reject(reason?: string): Promise<void>;
  extend(seconds: number): Promise<void>;
}

export class StreamRecord extends Message {
  readonly sequence: number;
  readonly time: Date;
  /** Only where the record came to a member of a group. */
  ack?(): Promise<void>;
}

export interface Channel<T> extends AsyncIterableIterator<T> {
  readonly dropped: number;
  /** Settled when the channel has ended: with the error that ended it, or undefined. */
  readonly ended: Promise<GanglionError | undefined>;
  close(): Promise<void>;
}

export interface Subscription extends Channel<Message> {
  readonly filter: string;
}

export interface Consumer extends Channel<Job> {
  readonly queue: string;
}

export interface Follower extends Channel<StreamRecord> {
  readonly stream: string;
  readonly position?: number;
}

export interface Service {
  readonly filter: string;
  readonly ended: Promise<GanglionError | undefined>;
  close(): Promise<void>;
}

export type Callback<T> = (item: T) => unknown;

export interface StateEvent extends Event {
  readonly state: "connecting" | "open" | "closed";
  readonly reason?: string;
}

export class Mesh extends EventTarget {
  readonly state: "connecting" | "open" | "closed";
  readonly greeting?: Record<string, unknown>;

  publish(topic: string, payload: Payload, options?: MessageOptions): Promise<Receipt>;
  send(topic: string, payload: Payload, options?: MessageOptions): boolean;
  subscribe(filter: string, callback?: Callback<Message>, options?: SubscribeOptions): Promise<Subscription>;
  subscribe(filter: string, options: SubscribeOptions): Promise<Subscription>;
  retained(topic: string): Promise<Message | undefined>;

  request(topic: string, payload: Payload, options?: RequestOptions): Promise<Message>;
  gather(topic: string, payload: Payload, options?: GatherOptions): Promise<Message[]>;
  serve(
    filter: string,
    handler: (call: Call) => Payload | undefined | Promise<Payload | undefined>,
    options?: { group?: string; credit?: number },
  ): Promise<Service>;

  declareQueue(name: string, options?: Record<string, unknown>): Promise<Record<string, unknown>>;
  describeQueue(name: string): Promise<Record<string, unknown>>;
  consume(queue: string, callback?: Callback<Job>, options?: ConsumeOptions): Promise<Consumer>;
  consume(queue: string, options: ConsumeOptions): Promise<Consumer>;

  declareStream(name: string, options?: Record<string, unknown>): Promise<Record<string, unknown>>;
  describeStream(name: string): Promise<Record<string, unknown>>;
  append(stream: string, payload: Payload, options?: AppendOptions): Promise<number>;
  read(
    stream: string,
    options?: { after?: number; from?: Date | number; key?: string; count?: number; bytes?: number },
  ): Promise<StreamRecord[]>;
  follow(stream: string, callback?: Callback<StreamRecord>, options?: FollowOptions): Promise<Follower>;
  follow(stream: string, options: FollowOptions): Promise<Follower>;

  close(): Promise<void>;
  addEventListener(type: "state", listener: (event: StateEvent) => void): void;
}

/** Whether a topic filter matches a topic. */
export function matches(filter: string, topic: string): boolean;

/** Connect to a node, or to the first one of several that answers. */
export function connect(addresses: string | URL | (string | URL)[], options?: ConnectOptions): Promise<Mesh>;
