/* MQTT 3.1.1 and 5.0: CONNECT, SUBSCRIBE, PUBLISH of every quality of service both ways. */
#include "load.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { FILTERS_PER_SUBSCRIBE = 100 };

static size_t put_length(uint8_t *place, size_t length) {
    size_t size = 0;
    do {
        place[size] = (uint8_t)(length & 0x7f);
        length >>= 7;
        if (length) place[size] |= 0x80;
        size++;
    } while (length);
    return size;
}

static uint8_t *put_text(uint8_t *place, const char *text) {
    size_t size = strlen(text);
    *place++ = (uint8_t)(size >> 8);
    *place++ = (uint8_t)size;
    memcpy(place, text, size);
    return place + size;
}

/* Reads a variable byte integer. Returns its size, 0 when it is not all there. */
static size_t get_length(const uint8_t *data, size_t size, size_t *value) {
    *value = 0;
    for (size_t i = 0; i < size && i < 4; i++) {
        *value |= (size_t)(data[i] & 0x7f) << (7 * i);
        if (!(data[i] & 0x80)) return i + 1;
    }
    if (size >= 4) fail("the broker sent a length of more than four bytes");
    return 0;
}

static void greet(struct connection *c) {
    uint8_t packet[1200], body[1200], *p = body;
    char id[48];
    snprintf(id, sizeof id, "load-%d-%d-%d", (int)getpid(), (int)c->role, c->index);
    p = put_text(p, "MQTT");
    *p++ = option.protocol == MQTT_5 ? 5 : 4;
    bool stays = option.durable && c->role == SUBSCRIBER;
    *p++ = (uint8_t)((stays ? 0 : 0x02) | (option.user ? 0x80 : 0) | (option.password ? 0x40 : 0));
    *p++ = 0; /* keep alive: none */
    *p++ = 0;
    if (option.protocol == MQTT_5 && stays) {
        memcpy(p, "\x05\x11\xff\xff\xff\xff", 6); /* a session that never expires (3.1.2.11.2) */
        p += 6;
    } else if (option.protocol == MQTT_5) {
        *p++ = 0;
    }
    p = put_text(p, id);
    if (option.user) p = put_text(p, option.user);
    if (option.password) p = put_text(p, option.password);
    packet[0] = 0x10;
    size_t header = 1 + put_length(packet + 1, (size_t)(p - body));
    append(c, packet, header);
    append(c, body, (size_t)(p - body));
    flush(c);
}

static void send_subscribe(struct connection *c) {
    static uint8_t body[FILTERS_PER_SUBSCRIBE * 128];
    uint8_t header[8], *p = body;
    char text[120];
    c->identifier++;
    *p++ = (uint8_t)(c->identifier >> 8);
    *p++ = (uint8_t)c->identifier;
    if (option.protocol == MQTT_5) *p++ = 0;
    if (c->role == SUBSCRIBER) {
        topic_name(text, sizeof text, c->index % option.topics);
        p = put_text(p, text);
        *p++ = (uint8_t)option.qos;
    } else {
        for (int n = 0; n < FILTERS_PER_SUBSCRIBE && c->next_filter < option.filters; n++) {
            filter_name(text, sizeof text, c->next_filter);
            p = put_text(p, text);
            *p++ = (uint8_t)option.qos;
            c->next_filter += option.filter_connections;
        }
    }
    header[0] = 0x82;
    append(c, header, 1 + put_length(header + 1, (size_t)(p - body)));
    append(c, body, (size_t)(p - body));
}

static struct prototype make(const struct connection *c, const char *topic, int deliveries) {
    (void)c;
    size_t room = strlen(topic) + (size_t)option.size + 64;
    struct prototype made = {.bytes = allocate(NULL, room), .deliveries = deliveries};
    uint8_t *p = made.bytes;
    size_t rest = 2 + strlen(topic);
    if (option.qos) rest += 2;
    if (option.protocol == MQTT_5) rest += 1;
    *p++ = (uint8_t)(0x30 | option.qos << 1);
    p += put_length(p, rest + (size_t)option.size);
    p = put_text(p, topic);
    if (option.qos) {
        made.identifier_at = (size_t)(p - made.bytes);
        p += 2;
    }
    if (option.protocol == MQTT_5) *p++ = 0;
    made.payload_at = (size_t)(p - made.bytes);
    fill_payload(p);
    p += option.size;
    made.size = (size_t)(p - made.bytes);
    return made;
}

/* The window that a MQTT 5 broker grants (Receive Maximum, clause 3.2.2.3.3). */
static int granted_window(const uint8_t *data, size_t size) {
    size_t length, at = get_length(data, size, &length), end = at + length;
    while (at < end && end <= size) {
        uint8_t name = data[at++];
        if (name == 0x21) return data[at] << 8 | data[at + 1];
        if (name == 0x24 || name == 0x25 || name == 0x28 || name == 0x29 || name == 0x2a)
            at += 1;
        else if (name == 0x22 || name == 0x13)
            at += 2;
        else if (name == 0x11 || name == 0x27)
            at += 4;
        else
            for (int texts = name == 0x26 ? 2 : 1; texts--;)
                at += 2 + (size_t)(data[at] << 8 | data[at + 1]);
    }
    return 65535;
}

static void settled(struct connection *c, const uint8_t *body, size_t size, bool completes) {
    bool refused = size > 2 && body[2] >= 0x80;
    if (completes || refused) on_settled(c, refused);
}

static void answer(struct connection *c, uint8_t type, const uint8_t *identifier) {
    uint8_t packet[4] = {type, 2, identifier[0], identifier[1]};
    append(c, packet, 4);
}

static void on_publish(struct connection *c, uint8_t flags, const uint8_t *body, size_t size) {
    if (size < 2) fail("the broker sent a malformed PUBLISH");
    int qos = flags >> 1 & 3;
    size_t at = 2 + (size_t)(body[0] << 8 | body[1]), properties;
    if (flags & 8) on_duplicate();
    if (qos) {
        answer(c, qos == 1 ? 0x40 : 0x50, body + at);
        at += 2;
    }
    if (option.protocol == MQTT_5) {
        at += get_length(body + at, size - at, &properties);
        at += properties;
    }
    if (at > size) fail("the broker sent a malformed PUBLISH");
    on_message(c, body + at, size - at);
}

static void on_packet(struct connection *c, uint8_t header, const uint8_t *body, size_t size) {
    switch (header >> 4) {
    case 2: /* CONNACK */
        if (size < 2 || body[1])
            fail("the broker refused to connect: code %d", size < 2 ? -1 : body[1]);
        c->window = option.window;
        if (option.protocol == MQTT_5) {
            int granted = granted_window(body + 2, size - 2);
            if (granted < c->window) c->window = granted;
        }
        if (c->role == SUBSCRIBER || (c->role == FILTERS && c->next_filter < option.filters))
            send_subscribe(c);
        else
            become_ready(c);
        break;
    case 3:
        on_publish(c, header & 15, body, size);
        break;
    case 4: /* PUBACK */
        settled(c, body, size, true);
        break;
    case 5: /* PUBREC */
        settled(c, body, size, false);
        if (size < 3 || body[2] < 0x80) answer(c, 0x62, body);
        break;
    case 6: /* PUBREL */
        answer(c, 0x70, body);
        break;
    case 7: /* PUBCOMP */
        settled(c, body, size, true);
        break;
    case 9: { /* SUBACK */
        size_t at = 2, properties;
        if (option.protocol == MQTT_5) {
            at += get_length(body + at, size - at, &properties);
            at += properties;
        }
        for (; at < size; at++)
            if (body[at] >= 0x80) fail("a subscription was refused: code %d", body[at]);
        if (c->role == FILTERS && c->next_filter < option.filters)
            send_subscribe(c);
        else
            become_ready(c);
        break;
    }
    case 14:
        cut(c, "the broker sent DISCONNECT");
        break;
    default:
        fail("the broker sent a packet of type %d", header >> 4);
    }
}

/* Handles the whole packets in the data and returns how many bytes they took. */
static size_t take(struct connection *c, const uint8_t *data, size_t size) {
    size_t at = 0;
    while (size - at >= 2) {
        size_t length, width = get_length(data + at + 1, size - at - 1, &length);
        if (!width || size - at - 1 - width < length) break;
        if (length > BUFFER_SIZE - 8) fail("the broker sent a packet of %zu bytes", length);
        on_packet(c, data[at], data + at + 1 + width, length);
        at += 1 + width + length;
    }
    return at;
}

const struct wire mqtt = {greet, make, take};
