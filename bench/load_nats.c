/* NATS: its core protocol, and JetStream where topics are queues.
 *
 * The stream and its consumer are there before (see brokers.py): it delivers to one subject, which
 * the subscribers share as a queue group. Each message is acknowledged by itself, and a publisher
 * counts one as acknowledged when the stream's answer has come to its inbox.
 */
#define _GNU_SOURCE
#include "load.h"

#include <stdio.h>
#include <string.h>

static const char hello[] = "CONNECT {\"verbose\":false,\"pedantic\":false}\r\n";

static void greet(struct connection *c) {
    char line[160], subject[64];
    int size = 0;
    append(c, hello, sizeof hello - 1);
    topic_name(subject, sizeof subject, c->index % option.topics);
    if (c->role == SUBSCRIBER && option.queues)
        size = snprintf(line, sizeof line, "SUB deliver.%s load 1\r\n", subject);
    else if (c->role == SUBSCRIBER)
        size = snprintf(line, sizeof line, "SUB %s 1\r\n", subject);
    else if (c->role == PUBLISHER && option.queues)
        size = snprintf(line, sizeof line, "SUB inbox.%d 1\r\n", c->index);
    append(c, line, (size_t)size);
    append(c, "PING\r\n", 6);
    c->window = option.window;
    flush(c);
}

static struct prototype make(const struct connection *c, const char *topic, int deliveries) {
    size_t room = strlen(topic) + (size_t)option.size + 96;
    struct prototype made = {.bytes = allocate(NULL, room), .deliveries = deliveries};
    char *text = (char *)made.bytes;
    int header = option.queues ? sprintf(text, "PUB %s inbox.%d %ld\r\n", topic, c->index, option.size)
                               : sprintf(text, "PUB %s %ld\r\n", topic, option.size);
    made.payload_at = (size_t)header;
    fill_payload(made.bytes + made.payload_at);
    memcpy(made.bytes + made.payload_at + option.size, "\r\n", 2);
    made.size = made.payload_at + (size_t)option.size + 2;
    return made;
}

/* MSG subject sid [reply] size: acknowledges to the reply, the fourth of five words. */
static void acknowledge(struct connection *c, const uint8_t *line, const uint8_t *size_at) {
    const uint8_t *reply_end = size_at - 1, *reply = reply_end;
    while (reply > line && reply[-1] != ' ') reply--;
    size_t length = (size_t)(reply_end - reply);
    append(c, "PUB ", 4);
    append(c, reply, length);
    append(c, " 0\r\n\r\n", 6);
}

static size_t take(struct connection *c, const uint8_t *data, size_t size) {
    size_t at = 0;
    for (;;) {
        const uint8_t *line = data + at, *end = memchr(line, '\n', size - at);
        if (!end) return at;
        size_t after = (size_t)(end + 1 - data);
        if (line[0] == 'M') { /* the payload stands behind it */
            const uint8_t *digit = end - 1;
            size_t length = 0;
            while (digit[-1] != ' ') digit--;
            const uint8_t *size_at = digit;
            for (; *digit >= '0' && *digit <= '9'; digit++)
                length = length * 10 + (size_t)(*digit - '0');
            if (length > PAYLOAD_MAX) fail("the broker sent %zu bytes", length);
            if (size - after < length + 2) return at;
            if (c->role == PUBLISHER) {
                bool refused = memmem(data + after, length, "\"error\"", 7) != NULL;
                on_settled(c, refused);
            } else {
                on_message(c, data + after, length);
                if (option.queues) acknowledge(c, line, size_at);
            }
            after += length + 2;
        } else if (!memcmp(line, "PI", 2)) {
            append(c, "PONG\r\n", 6);
        } else if (!memcmp(line, "PO", 2)) {
            become_ready(c);
        } else if (line[0] == '-') {
            fail("the broker answered %.*s", (int)(end - line - 1), line);
        }
        at = after;
    }
}

const struct wire nats = {greet, make, take};
