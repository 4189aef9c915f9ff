/* What the parts of the load program share: connections, output, and what each protocol gives.
 * load.c has the loop and counts; load_mqtt.c, load_native.c, load_nats.c and load_amqp.c each
 * speak one protocol, and load_web.c is WebSocket beneath one.
 */
#ifndef GANGLION_BENCH_LOAD_H
#define GANGLION_BENCH_LOAD_H

#include <openssl/ssl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    PAYLOAD_MIN = 16,              /* time, publisher, sequence */
    PAYLOAD_MAX = 1024 * 1024,
    BUFFER_SIZE = 2 * PAYLOAD_MAX, /* a whole packet and what came behind it */
};

enum protocol { MQTT_3_1_1, MQTT_5, NATIVE, NATS, AMQP };
enum role { IDLE, FILTERS, SUBSCRIBER, PUBLISHER };

/* A message ready to be sent but for its time, sequence and packet identifier. */
struct prototype {
    uint8_t *bytes;
    size_t size;
    size_t identifier_at; /* 0: it has none */
    size_t payload_at;
    int deliveries;       /* how many copies the broker owes for it */
};

struct connection {
    int fd;
    SSL *tls;
    enum role role;
    int index;                   /* among those of its role */
    bool ready;
    uint32_t interest;           /* what epoll watches for */
    uint8_t *out;                /* [out_sent, out_size) waits to be written */
    size_t out_sent, out_size, out_room;
    uint8_t *partial;            /* the beginning of a packet whose end has not come */
    size_t partial_size, partial_room;
    int window;                  /* publisher: how many may be unacknowledged */
    int unacknowledged;
    uint16_t identifier;
    uint32_t sequence;           /* publisher: of the last message sent */
    uint64_t *sent_at;           /* publisher: when what is unacknowledged was sent, a ring */
    size_t next_prototype;
    struct prototype *prototypes;
    size_t prototype_count;
    uint32_t *last_sequence;     /* receiver: of the last message of each publisher */
    long next_filter;            /* filter holder: the next to subscribe to */
    uint64_t confirmed;          /* AMQP: every delivery tag up to it is confirmed, */
    uint8_t *confirmed_beyond;   /* and of those behind it the ones that have a 1 here */
    uint64_t delivered;          /* AMQP: the last delivery tag that came */
    uint8_t frame_header[10];    /* WebSocket: the beginning of a frame, */
    size_t frame_header_size;
    size_t frame_left;           /* and what has not come of its payload */
    bool frame_is_control;
};

struct options {
    const char *host, *user, *password, *ca;
    int port, pubs, subs, topics, qos, window, batch, idle, filter_connections, spread, watch;
    long size, outstanding, filters, owed;
    double rate, duration, warmup;
    enum protocol protocol;
    bool tls, match, queues, durable, web;
};

extern struct options option;

void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
void *allocate(void *old, size_t size);

/* Output, sent by `flush`, at the latest when the bytes at hand are handled. */
uint8_t *reserve(struct connection *c, size_t size);
uint8_t *reserve_bare(struct connection *c, size_t size); /* no WebSocket frame around it */
void append(struct connection *c, const void *data, size_t size);
void flush(struct connection *c);

/* What a protocol tells of a connection. */
void become_ready(struct connection *c);
void cut(struct connection *c, const char *what);
void on_message(struct connection *c, const uint8_t *payload, size_t size);
void on_settled(struct connection *c, bool refused);
void on_duplicate(void);

void topic_name(char *text, size_t room, int topic);
void filter_name(char *text, size_t room, long i);
void fill_payload(uint8_t *place);

/* A protocol: what is said first, how a message looks, and what is done with the bytes that came
 * (it returns how many of them it took: whole packets only). */
struct wire {
    void (*greet)(struct connection *c);
    struct prototype (*make)(const struct connection *c, const char *topic, int deliveries);
    size_t (*take)(struct connection *c, const uint8_t *data, size_t size);
};

void web_open(struct connection *c);
size_t web_header_size(size_t size);
void web_header(uint8_t *place, size_t size, int opcode);
size_t web_take(struct connection *c, uint8_t *data, size_t size);

extern const struct wire mqtt, native, nats, amqp;

#endif
