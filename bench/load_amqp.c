/* AMQP 0-9-1, as much as durable queues need: persistent messages with publisher confirms in,
 * deliveries that are acknowledged out. One channel; sizes are below every broker's frame size.
 *
 * What was delivered is acknowledged by one frame for each read, which the protocol allows (the
 * 'multiple' bit, section 1.8.3.13): that is kindest to the broker.
 */
#define _GNU_SOURCE
#include "load.h"

#include <stdio.h>
#include <string.h>

/* Class and method as one number (section 1.2 of the generated reference). */
enum {
    CONNECTION_START = 10 << 16 | 10, CONNECTION_START_OK = 10 << 16 | 11,
    CONNECTION_TUNE = 10 << 16 | 30, CONNECTION_TUNE_OK = 10 << 16 | 31,
    CONNECTION_OPEN = 10 << 16 | 40, CONNECTION_OPEN_OK = 10 << 16 | 41,
    CONNECTION_CLOSE = 10 << 16 | 50,
    CHANNEL_OPEN = 20 << 16 | 10, CHANNEL_OPEN_OK = 20 << 16 | 11, CHANNEL_CLOSE = 20 << 16 | 40,
    QUEUE_DECLARE = 50 << 16 | 10, QUEUE_DECLARE_OK = 50 << 16 | 11,
    BASIC_QOS = 60 << 16 | 10, BASIC_QOS_OK = 60 << 16 | 11,
    BASIC_CONSUME = 60 << 16 | 20, BASIC_CONSUME_OK = 60 << 16 | 21,
    BASIC_PUBLISH = 60 << 16 | 40, BASIC_DELIVER = 60 << 16 | 60,
    BASIC_ACK = 60 << 16 | 80, BASIC_NACK = 60 << 16 | 120,
    CONFIRM_SELECT = 85 << 16 | 10, CONFIRM_SELECT_OK = 85 << 16 | 11,
};

enum { METHOD = 1, HEADER = 2, BODY = 3, HEARTBEAT = 8, FRAME_END = 0xce, FRAME_EXTRA = 8 };
enum { DURABLE = 2, DELIVERY_MODE = 0x1000, PERSISTENT = 2, MULTIPLE = 1 };
enum { UNCONFIRMED_MAX = 65536 };

static uint8_t *put(uint8_t *place, uint64_t value, int bytes) {
    while (bytes--) *place++ = (uint8_t)(value >> 8 * bytes);
    return place;
}

static uint8_t *put_short_text(uint8_t *place, const char *text) {
    size_t size = strlen(text);
    *place++ = (uint8_t)size;
    memcpy(place, text, size);
    return place + size;
}

static uint64_t get(const uint8_t *data, int bytes) {
    uint64_t value = 0;
    while (bytes--) value = value << 8 | *data++;
    return value;
}

/* Begins a frame; the size is put in by `end_frame`. */
static uint8_t *begin_frame(uint8_t *place, int type, int channel) {
    place[0] = (uint8_t)type;
    put(place + 1, (uint64_t)channel, 2);
    return place + 7;
}

static uint8_t *end_frame(uint8_t *frame, uint8_t *end) {
    put(frame + 3, (uint64_t)(end - frame - 7), 4);
    *end = FRAME_END;
    return end + 1;
}

static void send_method(struct connection *c, int channel, uint32_t method, const uint8_t *arguments,
                        size_t size) {
    uint8_t frame[512], *p = put(begin_frame(frame, METHOD, channel), method, 4);
    memcpy(p, arguments, size);
    p = end_frame(frame, p + size);
    append(c, frame, (size_t)(p - frame));
}

static void greet(struct connection *c) {
    append(c, "AMQP\0\0\x09\x01", 8);
    flush(c);
}

static void start(struct connection *c) {
    uint8_t arguments[400], *p = put(arguments, 0, 4); /* no client properties */
    const char *user = option.user ? option.user : "guest";
    const char *password = option.password ? option.password : "guest";
    p = put_short_text(p, "PLAIN");
    p = put(p, 2 + strlen(user) + strlen(password), 4);
    *p++ = 0;
    p = (uint8_t *)stpcpy((char *)p, user);
    *p++ = 0;
    p = (uint8_t *)stpcpy((char *)p, password);
    p = put_short_text(p, "en_US");
    send_method(c, 0, CONNECTION_START_OK, arguments, (size_t)(p - arguments));
}

static void tune(struct connection *c, const uint8_t *wanted) {
    uint8_t arguments[8], *p = arguments;
    memcpy(p, wanted, 6); /* channels and frame size as the broker likes them */
    p = put(p + 6, 0, 2); /* no heartbeats */
    send_method(c, 0, CONNECTION_TUNE_OK, arguments, 8);
    p = put_short_text(arguments, "/");
    p = put(p, 0, 2);
    send_method(c, 0, CONNECTION_OPEN, arguments, (size_t)(p - arguments));
}

static void declare(struct connection *c) {
    uint8_t arguments[128], *p = put(arguments, 0, 2);
    char name[64];
    topic_name(name, sizeof name, c->index % option.topics);
    p = put_short_text(p, name);
    *p++ = DURABLE;
    p = put(p, 0, 4);
    send_method(c, 1, QUEUE_DECLARE, arguments, (size_t)(p - arguments));
}

static void consume(struct connection *c) {
    uint8_t arguments[128], *p = put(arguments, 0, 2);
    char name[64];
    topic_name(name, sizeof name, c->index % option.topics);
    p = put_short_text(p, name);
    p = put_short_text(p, "");
    *p++ = 0;
    p = put(p, 0, 4);
    send_method(c, 1, BASIC_CONSUME, arguments, (size_t)(p - arguments));
}

static void select_role(struct connection *c) {
    uint8_t arguments[8] = {0};
    if (c->role == SUBSCRIBER) {
        put(arguments + 4, (uint64_t)option.window, 2);
        send_method(c, 1, BASIC_QOS, arguments, 7);
    } else if (c->role == PUBLISHER) {
        c->window = option.window;
        c->confirmed_beyond = allocate(NULL, UNCONFIRMED_MAX);
        memset(c->confirmed_beyond, 0, UNCONFIRMED_MAX);
        send_method(c, 1, CONFIRM_SELECT, arguments, 1);
    } else {
        become_ready(c);
    }
}

static struct prototype make(const struct connection *c, const char *topic, int deliveries) {
    (void)c;
    size_t room = strlen(topic) + (size_t)option.size + 128;
    struct prototype made = {.bytes = allocate(NULL, room), .deliveries = deliveries};
    uint8_t *frame = made.bytes, *p = put(begin_frame(frame, METHOD, 1), BASIC_PUBLISH, 4);
    p = put(p, 0, 2);
    p = put_short_text(p, "");
    p = put_short_text(p, topic);
    *p++ = 0;
    frame = end_frame(frame, p);
    p = put(begin_frame(frame, HEADER, 1), 60, 2);
    p = put(p, 0, 2);
    p = put(p, (uint64_t)option.size, 8);
    p = put(p, DELIVERY_MODE, 2);
    *p++ = PERSISTENT;
    frame = end_frame(frame, p);
    p = begin_frame(frame, BODY, 1);
    made.payload_at = (size_t)(p - made.bytes);
    fill_payload(p);
    p = end_frame(frame, p + option.size);
    made.size = (size_t)(p - made.bytes);
    return made;
}

/* Confirms come in any order, and one with the 'multiple' bit stands for all up to it. */
static void on_confirm(struct connection *c, uint64_t tag, bool multiple, bool refused) {
    if (tag <= c->confirmed) return;
    if (tag - c->confirmed >= UNCONFIRMED_MAX) fail("the broker confirmed what was never sent");
    if (multiple) {
        while (c->confirmed < tag) {
            uint8_t *mark = &c->confirmed_beyond[++c->confirmed % UNCONFIRMED_MAX];
            if (!*mark) on_settled(c, refused);
            *mark = 0;
        }
    } else {
        c->confirmed_beyond[tag % UNCONFIRMED_MAX] = 1;
        on_settled(c, refused);
    }
    for (;;) {
        uint8_t *next = &c->confirmed_beyond[(c->confirmed + 1) % UNCONFIRMED_MAX];
        if (!*next) break;
        *next = 0;
        c->confirmed++;
    }
}

static void on_method(struct connection *c, uint32_t method, const uint8_t *arguments) {
    switch (method) {
    case CONNECTION_START:
        start(c);
        break;
    case CONNECTION_TUNE:
        tune(c, arguments);
        break;
    case CONNECTION_OPEN_OK: {
        uint8_t nothing = 0;
        send_method(c, 1, CHANNEL_OPEN, &nothing, 1);
        break;
    }
    case CHANNEL_OPEN_OK:
        declare(c);
        break;
    case QUEUE_DECLARE_OK:
        select_role(c);
        break;
    case BASIC_QOS_OK:
        consume(c);
        break;
    case BASIC_CONSUME_OK:
    case CONFIRM_SELECT_OK:
        become_ready(c);
        break;
    case BASIC_DELIVER: { /* the tag stands behind the consumer's name */
        const uint8_t *tag = arguments + 1 + arguments[0];
        c->delivered = get(tag, 8);
        if (tag[8]) on_duplicate();
        break;
    }
    case BASIC_ACK:
    case BASIC_NACK:
        on_confirm(c, get(arguments, 8), arguments[8] & MULTIPLE, method == BASIC_NACK);
        break;
    case CONNECTION_CLOSE:
    case CHANNEL_CLOSE:
        fail("the broker closed: %.*s", arguments[2], arguments + 3);
    default:
        fail("the broker sent method %u of class %u", method & 0xffff, method >> 16);
    }
}

static void acknowledge(struct connection *c) {
    uint8_t arguments[9], *p = put(arguments, c->delivered, 8);
    *p = MULTIPLE;
    send_method(c, 1, BASIC_ACK, arguments, sizeof arguments);
}

static size_t take(struct connection *c, const uint8_t *data, size_t size) {
    size_t at = 0;
    bool came = false;
    while (size - at >= FRAME_EXTRA) {
        const uint8_t *frame = data + at;
        size_t length = get(frame + 3, 4);
        if (length > PAYLOAD_MAX) fail("the broker sent a frame of %zu bytes", length);
        if (size - at < length + FRAME_EXTRA) break;
        if (frame[7 + length] != FRAME_END) fail("the broker sent a malformed frame");
        if (frame[0] == METHOD) {
            on_method(c, (uint32_t)get(frame + 7, 4), frame + 11);
        } else if (frame[0] == BODY) {
            on_message(c, frame + 7, length);
            came = true;
        }
        at += length + FRAME_EXTRA;
    }
    if (came) acknowledge(c);
    return at;
}

const struct wire amqp = {greet, make, take};
