/* Ganglion's native protocol (docs/protocol.md): message and publish, subscribe, and consume with
 * ack where topics are queues.
 */
#define _GNU_SOURCE
#include "load.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum {
    MESSAGE = 1, JOBS = 3, OK = 11, ERROR = 12, CONFIRMED = 13, PING = 14, PONG = 15,
    HELLO = 32, PUBLISH = 33, SUBSCRIBE = 35, CONSUME = 40, ACK = 41,
    HELLO_ID = 1, CHANNEL_ID = 2,
    LEASES_MAX = 1024, /* of one ack: batch_max */
};

static uint8_t *put_text(uint8_t *p, const char *text) {
    size_t size = strlen(text);
    if (size < 32) {
        *p++ = (uint8_t)(0xa0 | size);
    } else {
        *p++ = 0xd9;
        *p++ = (uint8_t)size;
    }
    memcpy(p, text, size);
    return p + size;
}

static uint8_t *put_number(uint8_t *p, uint64_t value) {
    *p++ = 0xcf;
    for (int i = 7; i >= 0; i--) *p++ = (uint8_t)(value >> (8 * i));
    return p;
}

/* The value of so many bytes. */
static uint64_t big(const uint8_t *p, int bytes) {
    uint64_t value = 0;
    while (bytes--) value = value << 8 | *p++;
    return value;
}

/* What stands first in the data: its size with all that is in it, 0 when it is not all there. */
static size_t whole(const uint8_t *data, size_t size) {
    static const uint8_t fixed[32] = {1, 0, 1, 1, 2, 3, 5, 0, 0, 0, 5, 9, 2, 3, 5, 9,
                                      2, 3, 5, 9, 3, 4, 6, 10, 18, 2, 3, 5, 3, 5, 3, 5};
    size_t at = 0, todo = 1;
    while (todo--) {
        if (at >= size) return 0;
        uint8_t b = data[at];
        size_t head = 1, body = 0, more = 0;
        if (b < 0x80 || b >= 0xe0) {
        } else if (b < 0x90) {
            more = 2 * (size_t)(b & 15);
        } else if (b < 0xa0) {
            more = b & 15;
        } else if (b < 0xc0) {
            body = b & 31;
        } else {
            head = fixed[b & 31];
            if (!head) fail("the broker sent a byte that is not used here: %02x", b);
            if (size - at < head) return 0;
            if ((b >= 0xc4 && b <= 0xc6) || (b >= 0xd9 && b <= 0xdb))
                body = big(data + at + 1, (int)head - 1);
            if (b == 0xdc || b == 0xdd) more = big(data + at + 1, (int)head - 1);
            if (b == 0xde || b == 0xdf) more = 2 * big(data + at + 1, (int)head - 1);
        }
        if (size - at < head + body) return 0;
        at += head + body;
        todo += more;
    }
    return at;
}

/* Reads a whole number and moves on behind it. */
static uint64_t number(const uint8_t **p) {
    uint8_t b = *(*p)++;
    if (b < 0x80) return b;
    if (b < 0xcc || b > 0xcf) fail("the broker sent %02x where a number has to be", b);
    int bytes = 1 << (b - 0xcc);
    uint64_t value = big(*p, bytes);
    *p += bytes;
    return value;
}

static size_t length_of(const uint8_t **p, uint8_t small, uint8_t mask, uint8_t wide) {
    uint8_t b = *(*p)++;
    if (small && (b & (uint8_t)~mask) == small) return b & mask;
    int bytes = 1 << (b - wide);
    if (b < wide || bytes > 4) fail("the broker sent %02x where a length has to be", b);
    size_t value = big(*p, bytes);
    *p += bytes;
    return value;
}

static size_t array_length(const uint8_t **p) {
    uint8_t b = **p;
    if (b == 0xdc || b == 0xdd) {
        size_t value = big(*p + 1, b == 0xdc ? 2 : 4);
        *p += b == 0xdc ? 3 : 5;
        return value;
    }
    return length_of(p, 0x90, 0x0f, 0xff);
}

static size_t text_length(const uint8_t **p) { return length_of(p, 0xa0, 0x1f, 0xd9); }
static size_t bytes_length(const uint8_t **p) { return length_of(p, 0, 0, 0xc4); }

static void greet(struct connection *c) {
    uint8_t frame[600], *p = frame;
    char id[48];
    snprintf(id, sizeof id, "load-%d-%d-%d", (int)getpid(), (int)c->role, c->index);
    *p++ = 0x94;
    *p++ = HELLO;
    *p++ = HELLO_ID;
    *p++ = 1; /* version */
    *p++ = (uint8_t)(0x82 + (option.user ? 1 : 0) + (option.password ? 1 : 0));
    p = put_text(put_text(p, "client"), id);
    p = put_text(p, "keep_alive_s");
    *p++ = 0;
    if (option.user) p = put_text(put_text(p, "user"), option.user);
    if (option.password) p = put_text(put_text(p, "password"), option.password);
    append(c, frame, (size_t)(p - frame));
    flush(c);
}

static void send_subscribe(struct connection *c) {
    uint8_t frame[200], *p = frame;
    char name[64];
    topic_name(name, sizeof name, c->index % option.topics);
    *p++ = option.queues ? 0x94 : 0x93;
    *p++ = option.queues ? CONSUME : SUBSCRIBE;
    *p++ = CHANNEL_ID;
    p = put_text(p, option.queues ? strchr(name, '/') + 1 : name);
    if (option.queues) {
        *p++ = 0x82;
        p = put_number(put_text(p, "credit"), (uint64_t)option.window);
        p = put_text(p, "declare");
        *p++ = 0xc3;
    }
    append(c, frame, (size_t)(p - frame));
}

static struct prototype make(const struct connection *c, const char *topic, int deliveries) {
    (void)c;
    size_t room = strlen(topic) + (size_t)option.size + 32;
    struct prototype made = {.bytes = allocate(NULL, room), .deliveries = deliveries};
    uint8_t *p = made.bytes;
    *p++ = option.qos ? 0x94 : 0x93;
    *p++ = option.qos ? PUBLISH : MESSAGE;
    if (option.qos) {
        *p++ = 0xcd; /* ids are taken again after 65,535: nothing that is under way has one twice */
        made.identifier_at = (size_t)(p - made.bytes);
        p += 2;
    }
    p = put_text(p, topic);
    int width = option.size < 256 ? 1 : option.size < 65536 ? 2 : 4;
    *p++ = (uint8_t)(width == 1 ? 0xc4 : width == 2 ? 0xc5 : 0xc6);
    for (int i = width - 1; i >= 0; i--) *p++ = (uint8_t)(option.size >> (8 * i));
    made.payload_at = (size_t)(p - made.bytes);
    fill_payload(p);
    p += option.size;
    made.size = (size_t)(p - made.bytes);
    return made;
}

static void on_payload(struct connection *c, const uint8_t **p) {
    *p += text_length(p); /* the topic */
    size_t size = bytes_length(p);
    on_message(c, *p, size);
    *p += size;
}

static void on_jobs(struct connection *c, const uint8_t *p) {
    uint8_t frame[16 + 9 * LEASES_MAX], *out = frame;
    number(&p); /* the consumer */
    size_t jobs = array_length(&p);
    if (jobs > LEASES_MAX) fail("%zu jobs came at once", jobs);
    *out++ = 0x94;
    *out++ = ACK;
    *out++ = 0;
    *out++ = CHANNEL_ID;
    *out++ = 0xdc;
    *out++ = (uint8_t)(jobs >> 8);
    *out++ = (uint8_t)jobs;
    for (size_t i = 0; i < jobs; i++) {
        const uint8_t *job = p;
        p += whole(p, BUFFER_SIZE);
        array_length(&job);
        out = put_number(out, number(&job));
        on_payload(c, &job);
    }
    append(c, frame, (size_t)(out - frame));
}

static void on_frame(struct connection *c, const uint8_t *p, const uint8_t *end) {
    array_length(&p);
    switch (number(&p)) {
    case MESSAGE:
        on_payload(c, &p);
        break;
    case JOBS:
        on_jobs(c, p);
        break;
    case CONFIRMED: {
        uint64_t first = number(&p), last = number(&p);
        for (; first <= last; first++) on_settled(c, false);
        break;
    }
    case OK:
        c->window = option.window;
        if (number(&p) == HELLO_ID && c->role == SUBSCRIBER)
            send_subscribe(c);
        else
            become_ready(c);
        break;
    case ERROR:
        fail("the broker answered %.*s", (int)(end - p), p);
    case PING:
        append(c, (const uint8_t[]){0x91, PONG}, 2);
        break;
    default:
        break; /* what a client does not know it ignores */
    }
}

/* A message without properties, of which nearly all come: where its payload begins and ends. The
 * size of the frame, 0 when it is another one or not all there. */
static size_t message(const uint8_t *p, size_t size, const uint8_t **payload) {
    if (size < 6 || p[0] != 0x93 || p[1] != MESSAGE || p[2] < 0xa0 || p[2] >= 0xc0) return 0;
    size_t at = 3 + (size_t)(p[2] & 31);
    if (size < at + 3) return 0;
    size_t length = p[at] == 0xc4 ? p[at + 1] : p[at] == 0xc5 ? big(p + at + 1, 2) : SIZE_MAX;
    if (length == SIZE_MAX) return 0;
    at += p[at] == 0xc4 ? 2 : 3;
    *payload = p + at;
    return size - at < length ? 0 : at + length;
}

/* Handles the whole frames in the data and returns how many bytes they took. */
static size_t take(struct connection *c, const uint8_t *data, size_t size) {
    size_t at = 0;
    for (;;) {
        const uint8_t *frame = data + at, *payload;
        size_t length = message(frame, size - at, &payload);
        if (length) {
            on_message(c, payload, (size_t)(frame + length - payload));
            at += length;
            continue;
        }
        length = whole(frame, size - at);
        if (!length) return at;
        on_frame(c, frame, frame + length);
        at += length;
    }
}

const struct wire native = {greet, make, take};
