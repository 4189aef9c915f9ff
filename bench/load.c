/* load: message load from one thread, to compare brokers with each other on one machine.
 *
 *   cc -O2 -Wall -Wextra -o load load.c -lssl -lcrypto
 *   ./load --port 1883 --pubs 100 --subs 100 --topics 100 --qos 1 --window 20 --duration 3
 *
 * Publisher i publishes to topic i mod TOPICS and subscriber j subscribes to topic j mod TOPICS, so
 * every delivery that a publish ought to cause is known when it is sent. Publishers pause while
 * more deliveries than the outstanding bound are on their way (a closed loop: a slow broker is
 * asked less, it is never drowned). With a rate the messages are paced by the clock instead, and
 * what counts is the latency.
 *
 * Every payload begins with the monotonic time of its sending, the number of its publisher and its
 * sequence number there. From these come the latencies, and a count of messages that arrived twice
 * or out of order. What was expected and never came is 'lost' (legal for QoS 0, and worth seeing).
 *
 * With --queues the topics are durable queues instead, whose subscribers share what comes, and with
 * --owed their subscribers only take what waits there already. The latency of acknowledgements is
 * measured by order: exact where a broker acknowledges in order.
 *
 * Besides load there are two kinds of silent connections, made before it starts:
 *   idle connections that do nothing, and connections that hold a great number of filters.
 * Without publishers (and nothing owed) the program prints its line when everything is connected
 * and holds it all until its standard input ends.
 *
 * One JSON object comes out, on one line. `load_cpu` is this program's own share of a core while it
 * measured: near 1 it is this program that was the limit, and the broker may be faster than shown.
 * `broker_cpu` is the same of the broker, if it was said which process that is.
 * Exit status: 0 when all went well, 2 with a message when not, 3 when idle connections were cut.
 */
#define _GNU_SOURCE
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    EVENTS_MAX = 1024,
    CONNECTING_MAX = 64,           /* below any listen backlog: a lost SYN costs a second */
    READ_SIZE = 256 * 1024,
    CELLS_PER_OCTAVE = 128,        /* latency resolution: better than 1% */
    CELLS = 58 * CELLS_PER_OCTAVE,
    NS_PER_S = 1000000000,
};

struct options option = {
    .host = "127.0.0.1", .port = 1883, .pubs = 1, .subs = 1, .topics = 1, .window = 20, .batch = 1,
    .size = 64, .outstanding = 2000, .duration = 3, .warmup = 0.5, .filter_connections = 10,
    .spread = 1000,
};

struct counters {
    uint64_t sent, expected, received, acknowledged;
};

static struct counters count;
static uint64_t refused, duplicate_flags, disordered, idle_lost;
static bool measuring;
static uint64_t latency_cells[CELLS], acknowledgement_cells[CELLS], late_cells[CELLS];
static uint64_t latency_max;
static uint64_t read_at; /* when the bytes at hand came: all messages of one read at once */
static int poller;
static SSL_CTX *tls_context;
static struct connection *connections;
static int connection_count, ready_count;
static uint8_t buffer[BUFFER_SIZE + READ_SIZE];

static const struct wire *wire;

void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "load: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    exit(2);
}

void *allocate(void *old, size_t size) {
    void *memory = realloc(old, size ? size : 1);
    if (!memory) fail("out of memory");
    return memory;
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static double cpu_seconds(void) {
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    return (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
           (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) / 1e6;
}

/* What all threads of the watched broker have used so far. */
static double broker_cpu_seconds(void) {
    char path[64], text[1024];
    unsigned long user = 0, system = 0;
    if (!option.watch) return 0;
    snprintf(path, sizeof path, "/proc/%d/stat", option.watch);
    FILE *file = fopen(path, "r");
    if (!file) fail("there is no process %d", option.watch);
    size_t size = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[size] = 0;
    const char *after_name = strrchr(text, ')');
    if (!after_name ||
        sscanf(after_name + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user,
               &system) != 2)
        fail("%s cannot be read", path);
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

/* ---- latency: cells of equal relative width, so that one table serves 1 us and 10 s alike ---- */

static size_t cell_of(uint64_t ns) {
    int octave = ns ? 63 - __builtin_clzll(ns) : 0;
    int shift = octave > 7 ? octave - 7 : 0;
    size_t cell = (size_t)shift * CELLS_PER_OCTAVE + (size_t)(ns >> shift);
    return cell < CELLS ? cell : CELLS - 1;
}

static double cell_ns(size_t cell) {
    if (cell < 2 * CELLS_PER_OCTAVE) return (double)cell;
    size_t shift = cell / CELLS_PER_OCTAVE - 1;
    return ((double)(cell - shift * CELLS_PER_OCTAVE) + 0.5) * (double)(1ull << shift);
}

static double percentile_us(const uint64_t *cells, double share) {
    uint64_t total = 0, below = 0;
    for (size_t i = 0; i < CELLS; i++) total += cells[i];
    for (size_t i = 0; i < CELLS; i++) {
        below += cells[i];
        if (total && (double)below >= (double)total * share) return cell_ns(i) / 1e3;
    }
    return 0;
}

/* ---- output ---- */

uint8_t *reserve_bare(struct connection *c, size_t size) {
    if (c->out_sent == c->out_size) c->out_sent = c->out_size = 0;
    if (c->out_size + size > c->out_room) {
        c->out_room = (c->out_size + size) * 2;
        c->out = allocate(c->out, c->out_room);
    }
    uint8_t *place = c->out + c->out_size;
    c->out_size += size;
    return place;
}

uint8_t *reserve(struct connection *c, size_t size) {
    if (!option.web) return reserve_bare(c, size);
    size_t header_size = web_header_size(size);
    uint8_t *place = reserve_bare(c, header_size + size);
    web_header(place, size, 2);
    return place + header_size;
}

void append(struct connection *c, const void *data, size_t size) {
    memcpy(reserve(c, size), data, size);
}

static bool blocked(const struct connection *c) { return c->out_sent < c->out_size; }

static void watch(struct connection *c, uint32_t interest) {
    if (c->interest == interest) return;
    struct epoll_event event = {.events = interest, .data.ptr = c};
    if (epoll_ctl(poller, c->interest ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, c->fd, &event))
        fail("epoll_ctl: %s", strerror(errno));
    c->interest = interest;
}

void cut(struct connection *c, const char *what) {
    static const char *const names[] = {"idle", "filter", "subscriber", "publisher"};
    if (c->role != IDLE) fail("%s %d: %s", names[c->role], c->index, what);
    if (!c->ready) ready_count++; /* or the start would wait for it for ever */
    c->ready = true;
    idle_lost++;
    close(c->fd);
    c->fd = -1;
}

void flush(struct connection *c) {
    while (blocked(c)) {
        const uint8_t *data = c->out + c->out_sent;
        size_t size = c->out_size - c->out_sent;
        ssize_t written;
        if (c->tls) {
            ERR_clear_error();
            written = SSL_write(c->tls, data, size > READ_SIZE ? READ_SIZE : (int)size);
            if (written <= 0) {
                int why = SSL_get_error(c->tls, (int)written);
                if (why == SSL_ERROR_WANT_WRITE || why == SSL_ERROR_WANT_READ) {
                    watch(c, EPOLLIN | EPOLLOUT);
                    return;
                }
                cut(c, "TLS write failed");
                return;
            }
        } else {
            written = send(c->fd, data, size, MSG_NOSIGNAL);
            if (written < 0) {
                if (errno == EAGAIN) {
                    watch(c, EPOLLIN | EPOLLOUT);
                    return;
                }
                cut(c, strerror(errno));
                return;
            }
        }
        c->out_sent += (size_t)written;
    }
    watch(c, EPOLLIN);
}

/* ---- wire forms ---- */

void topic_name(char *text, size_t room, int topic) {
    const char *form = option.protocol == NATS ? "bench.t%d" : "bench/t%d";
    if (option.queues && option.protocol <= NATIVE) form = "$queue/bench%d";
    snprintf(text, room, form, topic);
}

/* Filter i and the only measured topic that it matches: half of them are exact, a quarter end in
 * '#', a quarter have a '+' in the middle. */
void filter_name(char *text, size_t room, long i) {
    long area = i % 97;
    if (i % 4 == 1)
        snprintf(text, room, "fleet/+/unit%ld/state", i);
    else if (i % 4 == 3)
        snprintf(text, room, "fleet/area%ld/unit%ld/#", area, i);
    else
        snprintf(text, room, "fleet/area%ld/unit%ld/state", area, i);
}

static void filter_topic(char *text, size_t room, long i) {
    snprintf(text, room, "fleet/area%ld/unit%ld/state", i % 97, i);
}

void fill_payload(uint8_t *place) {
    for (long i = 0; i < option.size; i++) *place++ = (uint8_t)('a' + i % 26);
}

static void put_message(struct connection *c) {
    const struct prototype *message = &c->prototypes[c->next_prototype];
    if (++c->next_prototype == c->prototype_count) c->next_prototype = 0;
    uint8_t *place = reserve(c, message->size);
    memcpy(place, message->bytes, message->size);
    if (message->identifier_at) {
        if (++c->identifier == 0) c->identifier = 1;
        place[message->identifier_at] = (uint8_t)(c->identifier >> 8);
        place[message->identifier_at + 1] = (uint8_t)c->identifier;
    }
    uint64_t time = now_ns();
    uint32_t publisher = (uint32_t)c->index;
    c->sequence++;
    if (option.qos) {
        c->sent_at[c->sequence % (uint32_t)option.window] = time;
        c->unacknowledged++;
    }
    memcpy(place + message->payload_at, &time, 8);
    memcpy(place + message->payload_at + 8, &publisher, 4);
    memcpy(place + message->payload_at + 12, &c->sequence, 4);
    count.sent++;
    count.expected += (uint64_t)message->deliveries;
}

/* ---- input ---- */

void become_ready(struct connection *c) {
    if (c->ready) return;
    c->ready = true;
    ready_count++;
}

void on_message(struct connection *c, const uint8_t *payload, size_t size) {
    uint64_t sent;
    uint32_t publisher, sequence;
    if (size != (size_t)option.size)
        fail("a payload of %zu bytes came where %ld were sent", size, option.size);
    memcpy(&sent, payload, 8);
    memcpy(&publisher, payload + 8, 4);
    memcpy(&sequence, payload + 12, 4);
    if (publisher >= (uint32_t)(option.pubs ? option.pubs : 1) || !c->last_sequence)
        fail("a payload came that was never sent");
    if (sequence <= c->last_sequence[publisher])
        disordered++;
    else
        c->last_sequence[publisher] = sequence;
    count.received++;
    if (measuring) {
        uint64_t latency = read_at - sent;
        if (latency > latency_max) latency_max = latency;
        latency_cells[cell_of(latency)]++;
    }
}

void on_settled(struct connection *c, bool was_refused) {
    uint32_t oldest = c->sequence - (uint32_t)c->unacknowledged + 1;
    if (c->unacknowledged < 1) fail("the broker acknowledged what was never sent");
    if (measuring)
        acknowledgement_cells[cell_of(read_at - c->sent_at[oldest % (uint32_t)option.window])]++;
    refused += was_refused;
    c->unacknowledged--;
    count.acknowledged++;
}

void on_duplicate(void) { duplicate_flags++; }

static void on_readable(struct connection *c) {
    for (;;) {
        size_t kept = c->partial_size;
        if (kept) memcpy(buffer, c->partial, kept);
        ssize_t got;
        if (c->tls) {
            ERR_clear_error();
            got = SSL_read(c->tls, buffer + kept, READ_SIZE);
            if (got <= 0) {
                int why = SSL_get_error(c->tls, (int)got);
                if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE) break;
                cut(c, "the broker closed the connection");
                return;
            }
        } else {
            got = recv(c->fd, buffer + kept, READ_SIZE, 0);
            if (got < 0 && errno == EAGAIN) break;
            if (got <= 0) {
                cut(c, got ? strerror(errno) : "the broker closed the connection");
                return;
            }
        }
        read_at = now_ns();
        size_t came = option.web ? web_take(c, buffer + kept, (size_t)got) : (size_t)got;
        if (c->fd < 0) return;
        size_t size = kept + came;
        size_t taken = wire->take(c, buffer, size);
        if (c->fd < 0) return;
        c->partial_size = size - taken;
        if (c->partial_size > BUFFER_SIZE) fail("the broker sent an endless packet");
        if (c->partial_size > c->partial_room) {
            c->partial_room = c->partial_size;
            c->partial = allocate(c->partial, c->partial_room);
        }
        if (c->partial_size) memcpy(c->partial, buffer + taken, c->partial_size);
        if (!c->tls && got < READ_SIZE) break; /* the next wait tells whether there is more */
    }
    if (blocked(c)) flush(c);
}

/* Waits for at most so long and handles what came. */
static void turn(uint64_t wait_ns) {
    static struct epoll_event events[EVENTS_MAX];
    struct timespec wait = {(time_t)(wait_ns / NS_PER_S), (long)(wait_ns % NS_PER_S)};
    int n = epoll_pwait2(poller, events, EVENTS_MAX, &wait, NULL);
    if (n < 0 && errno != EINTR) fail("epoll_pwait2: %s", strerror(errno));
    for (int i = 0; i < n; i++) {
        struct connection *c = events[i].data.ptr;
        if (c->fd >= 0 && events[i].events & EPOLLOUT) flush(c);
        if (c->fd >= 0 && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) on_readable(c);
    }
}

/* ---- connecting ---- */

static void open_connection(struct connection *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)option.port)};
    if (inet_pton(AF_INET, option.host, &address.sin_addr) != 1)
        fail("%s is not an IPv4 address", option.host);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0) fail("socket: %s", strerror(errno));
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address))
        fail("cannot connect to %s:%d: %s", option.host, option.port, strerror(errno));
    int on = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (option.tls) {
        c->tls = SSL_new(tls_context);
        SSL_set_fd(c->tls, c->fd);
        if (option.ca) X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(c->tls), option.host);
        if (SSL_connect(c->tls) != 1) fail("TLS: %s", ERR_reason_error_string(ERR_get_error()));
    }
    if (option.web) web_open(c);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    watch(c, EPOLLIN);
    wire->greet(c);
}

static void prepare(struct connection *c) {
    char text[120];
    if (c->role == SUBSCRIBER || c->role == FILTERS) {
        c->last_sequence = calloc((size_t)option.pubs + 1, sizeof *c->last_sequence);
        if (!c->last_sequence) fail("out of memory");
    }
    if (c->role == FILTERS) c->next_filter = c->index;
    if (c->role != PUBLISHER) return;
    c->sent_at = allocate(NULL, (size_t)option.window * sizeof *c->sent_at);
    if (option.match) {
        /* 7919 is prime: the topics are spread over all filters, of every form, each taken once */
        c->prototype_count = (size_t)option.spread;
        c->prototypes = allocate(NULL, c->prototype_count * sizeof *c->prototypes);
        for (size_t i = 0; i < c->prototype_count; i++) {
            filter_topic(text, sizeof text, (long)i * 7919 % option.filters);
            c->prototypes[i] = wire->make(c, text, 1);
        }
        return;
    }
    int topic = c->index % option.topics, subscribers = 0;
    for (int i = 0; i < option.subs; i++) subscribers += i % option.topics == topic;
    topic_name(text, sizeof text, topic);
    c->prototype_count = 1;
    c->prototypes = allocate(NULL, sizeof *c->prototypes);
    c->prototypes[0] = wire->make(c, text, option.queues ? subscribers > 0 : subscribers);
}

static void connect_all(void) {
    int holders = option.filters ? option.filter_connections : 0;
    const int wanted[] = {option.idle, holders, option.subs, option.pubs};
    for (int role = IDLE; role <= PUBLISHER; role++) connection_count += wanted[role];
    connections = calloc((size_t)connection_count + 1, sizeof *connections);
    if (!connections) fail("out of memory");
    uint64_t deadline = now_ns() + 120ull * NS_PER_S;
    int opened = 0;
    for (int role = IDLE; role <= PUBLISHER; role++) {
        for (int i = 0; i < wanted[role]; i++) {
            struct connection *c = &connections[opened];
            c->role = (enum role)role;
            c->index = i;
            prepare(c);
            open_connection(c);
            opened++;
            while (opened - ready_count >= CONNECTING_MAX && now_ns() < deadline) turn(NS_PER_S);
        }
        while (ready_count < opened && now_ns() < deadline) turn(NS_PER_S);
        if (ready_count < opened)
            fail("only %d of %d connections were ready in time", ready_count, opened);
    }
}

/* ---- the run ---- */

/* How many deliveries may be on their way at once. */
static uint64_t outstanding_bound(void) {
    double copies = option.match || option.queues ? 1 : (double)option.subs / option.topics;
    return (uint64_t)((double)option.outstanding * (copies > 1 ? copies : 1));
}

/* Whether the loop is still open for this publisher: by the bound of all, and by its own window. */
static bool may_send(const struct connection *c, uint64_t bound) {
    return count.expected <= count.received + bound &&
           (option.qos == 0 || c->unacknowledged < c->window);
}

/* Every publisher in turn writes one batch. Returns whether anything was written. */
static bool send_round(struct connection *publishers, uint64_t bound) {
    bool any = false;
    for (int i = 0; i < option.pubs; i++) {
        struct connection *c = &publishers[i];
        if (blocked(c)) continue;
        int n = 0;
        for (; n < option.batch && c->out_size < READ_SIZE && may_send(c, bound); n++)
            put_message(c);
        if (n) flush(c);
        any |= n > 0;
    }
    return any;
}

/* Sends what is due by the clock, one message a write, publisher after publisher. Returns the time
 * until the next is due, in nanoseconds. */
static uint64_t send_due(struct connection *publishers, uint64_t bound, uint64_t start,
                         uint64_t now) {
    static int next;
    int passed_over = 0;
    for (;;) {
        uint64_t due = start + (uint64_t)((double)count.sent * 1e9 / option.rate);
        if (due > now) return due - now;
        struct connection *c = &publishers[next];
        next = (next + 1) % option.pubs;
        if (blocked(c) || !may_send(c, bound)) {
            if (++passed_over == option.pubs) return NS_PER_S / 1000;
            continue;
        }
        passed_over = 0;
        put_message(c);
        flush(c);
        if (measuring) late_cells[cell_of(now - due)]++;
    }
}

static void run(double connect_s) {
    struct connection *publishers = connections + connection_count - option.pubs;
    struct counters first = {0}, last = {0};
    uint64_t bound = outstanding_bound(), start = now_ns();
    uint64_t begin = start + (uint64_t)(option.warmup * 1e9), began = 0;
    uint64_t end = begin + (uint64_t)(option.duration * 1e9), ended = 0;
    uint64_t progress = 0, had = 0;
    double cpu_began = 0, cpu_ended = 0, broker_began = 0, broker_ended = 0;
    int rounds = option.pubs && option.pubs < 16 ? 16 / option.pubs : 1;
    count.expected = (uint64_t)option.owed;
    for (;;) {
        uint64_t now = now_ns(), wait = NS_PER_S / 100;
        if (!began && now >= begin) {
            began = now;
            first = count;
            cpu_began = cpu_seconds();
            broker_began = broker_cpu_seconds();
            measuring = true;
        }
        if (!ended && (now >= end || (option.owed && count.received >= count.expected))) {
            ended = progress = now;
            last = count;
            cpu_ended = cpu_seconds();
            broker_ended = broker_cpu_seconds();
            measuring = false;
        }
        if (ended && option.owed) break;
        if (ended) { /* what is on its way may still come; after 2 s of silence it is lost */
            if (count.received != had) progress = now;
            had = count.received;
            if (count.received >= count.expected || now - progress > 2ull * NS_PER_S) break;
        } else if (option.rate > 0) {
            uint64_t until = send_due(publishers, bound, start, now);
            if (until < wait) wait = until;
        } else {
            for (int i = 0; i < rounds; i++) {
                if (!send_round(publishers, bound)) break;
                wait = 0;
            }
        }
        turn(wait);
    }
    double seconds = (double)(ended - began) / 1e9;
    printf("{\"pub_s\": %.0f, \"recv_s\": %.0f, \"ack_s\": %.0f, ",
           (double)(last.sent - first.sent) / seconds,
           (double)(last.received - first.received) / seconds,
           (double)(last.acknowledged - first.acknowledged) / seconds);
    printf("\"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, ",
           percentile_us(latency_cells, 0.5), percentile_us(latency_cells, 0.9),
           percentile_us(latency_cells, 0.99), percentile_us(latency_cells, 0.999));
    printf("\"ack_p50_us\": %.1f, \"ack_p99_us\": %.1f, ",
           percentile_us(acknowledgement_cells, 0.5), percentile_us(acknowledgement_cells, 0.99));
    printf("\"max_us\": %.1f, \"late_p99_us\": %.1f, ", (double)latency_max / 1e3,
           percentile_us(late_cells, 0.99));
    printf("\"messages\": %llu, \"deliveries\": %llu, \"lost\": %lld, \"disordered\": %llu, ",
           (unsigned long long)count.sent, (unsigned long long)count.received,
           (long long)(count.expected - count.received), (unsigned long long)disordered);
    printf("\"duplicate_flags\": %llu, \"refused\": %llu, \"idle_lost\": %llu, ",
           (unsigned long long)duplicate_flags, (unsigned long long)refused,
           (unsigned long long)idle_lost);
    printf("\"connect_s\": %.3f, \"seconds\": %.3f, ", connect_s, seconds);
    printf("\"load_cpu\": %.3f, \"broker_cpu\": %.3f}\n", (cpu_ended - cpu_began) / seconds,
           (broker_ended - broker_began) / seconds);
}

static void hold(double connect_s) {
    printf("{\"connections\": %d, \"filters\": %ld, \"idle_lost\": %llu, \"connect_s\": %.3f}\n",
           connection_count, option.filters, (unsigned long long)idle_lost, connect_s);
    fflush(stdout);
    struct pollfd wait[2] = {{.fd = poller, .events = POLLIN},
                             {.fd = STDIN_FILENO, .events = POLLIN}};
    for (;;) {
        char text[64];
        if (poll(wait, 2, -1) < 0 && errno != EINTR) fail("poll: %s", strerror(errno));
        if (wait[0].revents) turn(0);
        if (wait[1].revents && read(STDIN_FILENO, text, sizeof text) <= 0) return;
    }
}

static void prepare_tls(void) {
    tls_context = SSL_CTX_new(TLS_client_method());
    if (!tls_context) fail("OpenSSL could not be started");
    SSL_CTX_set_mode(tls_context,
                     SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_read_ahead(tls_context, 1);
    if (option.ca) {
        if (SSL_CTX_load_verify_locations(tls_context, option.ca, NULL) != 1)
            fail("%s holds no certificates", option.ca);
        SSL_CTX_set_verify(tls_context, SSL_VERIFY_PEER, NULL);
    }
}

static const char usage[] =
    "usage: load [option]...\n"
    "  --host ADDRESS  --port N     where the broker is (127.0.0.1, 1883)\n"
    "  --pubs N --subs N --topics N publishers, subscribers, topics that they share (1, 1, 1)\n"
    "  --qos N --window N           quality of service; unacknowledged per publisher (0, 20)\n"
    "  --size BYTES --batch N       payload (64); messages per write (1)\n"
    "  --outstanding N              deliveries on their way, per subscriber of a topic (2000)\n"
    "  --rate N                     messages per second in all, instead of a closed loop\n"
    "  --duration S --warmup S      measured and unmeasured time (3, 0.5)\n"
    "  --v5 | --native | --nats | --amqp   MQTT 5, Ganglion's own, NATS, AMQP 0-9-1 (MQTT 3.1.1)\n"
    "  --web                        MQTT over WebSocket, at the path /mqtt\n"
    "  --queues                     topics are durable queues: JetStream over NATS\n"
    "  --durable                    MQTT subscribers have sessions that stay\n"
    "  --owed N                     messages that wait for the subscribers, without publishers\n"
    "  --tls [--ca FILE]            TLS; with a file the broker's certificate is verified\n"
    "  --user NAME --password TEXT  credentials\n"
    "  --idle N                     connections that do nothing\n"
    "  --filters N --filter-connections N   distinct filters that those hold together (0, 10)\n"
    "  --watch PID                  measure the processor time of that broker, too\n"
    "  --match --spread N           publish to N topics, each of which matches one filter (1000)\n";

static void read_options(int argc, char **argv) {
    enum {
        HOST, PORT, PUBS, SUBS, TOPICS, QOS, WINDOW, SIZE, BATCH, OUTSTANDING, RATE, DURATION,
        WARMUP, V5, NATIVE_, NATS_, TLS_, CA, USER, PASSWORD, IDLE_, FILTERS_, HOLDERS, MATCH, SPREAD,
        WATCH, AMQP_, QUEUES, DURABLE, OWED, WEB, HELP
    };
    static const struct option known[] = {
        {"host", 1, NULL, HOST}, {"port", 1, NULL, PORT}, {"pubs", 1, NULL, PUBS},
        {"subs", 1, NULL, SUBS}, {"topics", 1, NULL, TOPICS}, {"qos", 1, NULL, QOS},
        {"window", 1, NULL, WINDOW}, {"size", 1, NULL, SIZE}, {"batch", 1, NULL, BATCH},
        {"outstanding", 1, NULL, OUTSTANDING}, {"rate", 1, NULL, RATE},
        {"duration", 1, NULL, DURATION}, {"warmup", 1, NULL, WARMUP}, {"v5", 0, NULL, V5},
        {"native", 0, NULL, NATIVE_}, {"nats", 0, NULL, NATS_}, {"tls", 0, NULL, TLS_}, {"ca", 1, NULL, CA},
        {"user", 1, NULL, USER}, {"password", 1, NULL, PASSWORD}, {"idle", 1, NULL, IDLE_},
        {"filters", 1, NULL, FILTERS_}, {"filter-connections", 1, NULL, HOLDERS},
        {"match", 0, NULL, MATCH}, {"spread", 1, NULL, SPREAD}, {"watch", 1, NULL, WATCH},
        {"amqp", 0, NULL, AMQP_}, {"queues", 0, NULL, QUEUES}, {"durable", 0, NULL, DURABLE},
        {"owed", 1, NULL, OWED}, {"web", 0, NULL, WEB}, {"help", 0, NULL, HELP}, {0},
    };
    int which;
    while ((which = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (which) {
        case HOST: option.host = optarg; break;
        case PORT: option.port = atoi(optarg); break;
        case PUBS: option.pubs = atoi(optarg); break;
        case SUBS: option.subs = atoi(optarg); break;
        case TOPICS: option.topics = atoi(optarg); break;
        case QOS: option.qos = atoi(optarg); break;
        case WINDOW: option.window = atoi(optarg); break;
        case SIZE: option.size = atol(optarg); break;
        case BATCH: option.batch = atoi(optarg); break;
        case OUTSTANDING: option.outstanding = atol(optarg); break;
        case RATE: option.rate = atof(optarg); break;
        case DURATION: option.duration = atof(optarg); break;
        case WARMUP: option.warmup = atof(optarg); break;
        case V5: option.protocol = MQTT_5; break;
        case NATIVE_: option.protocol = NATIVE; break;
        case NATS_: option.protocol = NATS; break;
        case TLS_: option.tls = true; break;
        case CA: option.ca = optarg; break;
        case USER: option.user = optarg; break;
        case PASSWORD: option.password = optarg; break;
        case IDLE_: option.idle = atoi(optarg); break;
        case FILTERS_: option.filters = atol(optarg); break;
        case HOLDERS: option.filter_connections = atoi(optarg); break;
        case MATCH: option.match = true; break;
        case SPREAD: option.spread = atoi(optarg); break;
        case WATCH: option.watch = atoi(optarg); break;
        case AMQP_: option.protocol = AMQP; break;
        case QUEUES: option.queues = true; break;
        case DURABLE: option.durable = true; break;
        case OWED: option.owed = atol(optarg); break;
        case WEB: option.web = true; break;
        case HELP: fputs(usage, stdout); exit(0);
        default: fputs(usage, stderr); exit(2);
        }
    }
    if (optind < argc) fail("what is '%s'?", argv[optind]);
    if (option.pubs < 0 || option.subs < 0 || option.idle < 0 || option.filters < 0 ||
        option.owed < 0)
        fail("counts are not negative");
    if (option.topics < 1 || option.batch < 1 || option.window < 1 || option.outstanding < 1 ||
        option.filter_connections < 1 || option.spread < 1)
        fail("topics, batch, window, outstanding, filter-connections and spread are at least 1");
    if (option.qos < 0 || option.qos > 2) fail("qos is 0, 1 or 2");
    if (option.window > 65535) fail("a window is at most 65535");
    if (option.size < PAYLOAD_MIN || option.size > PAYLOAD_MAX)
        fail("a payload has %d to %d bytes", PAYLOAD_MIN, PAYLOAD_MAX);
    if (option.duration <= 0 || option.warmup < 0 || option.rate < 0)
        fail("times and rates are positive");
    if ((option.user && strlen(option.user) > 400) ||
        (option.password && strlen(option.password) > 400))
        fail("user and password have at most 400 bytes");
    if (option.match && option.spread > option.filters)
        fail("match needs at least as many filters as spread");
    bool with_queues = option.protocol == AMQP || (option.protocol == NATS && option.queues);
    if (option.protocol == NATS && (option.tls || option.filters || option.user))
        fail("over NATS there are no TLS, filters and users");
    if (option.protocol >= NATS && (option.qos == 1) != with_queues)
        fail("queues have QoS 1, topics over NATS QoS 0, and over AMQP there are only queues");
    if (option.protocol == NATIVE && (option.qos == 2 || option.filters || option.durable))
        fail("the native protocol has no QoS 2 and no sessions, and here holds no filters");
    if (option.web && option.protocol > MQTT_5) fail("only MQTT is spoken over WebSocket");
    if (option.owed && (option.pubs || !option.subs))
        fail("what is owed is taken by subscribers, without publishers");
    wire = option.protocol == AMQP ? &amqp : option.protocol == NATS ? &nats
           : option.protocol == NATIVE ? &native : &mqtt;
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_TIMERSLACK, 1000ul); /* the default of 50 us would show in the latencies */
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    rlim_t need = 64;
    need += (rlim_t)(option.pubs + option.subs + option.idle + option.filter_connections);
    if (files.rlim_cur < need) {
        files.rlim_cur = need;
        if (files.rlim_max < need) files.rlim_max = need;
        if (setrlimit(RLIMIT_NOFILE, &files))
            fail("%lu open files are not allowed here", (unsigned long)need);
    }
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (option.tls) prepare_tls();
    uint64_t start = now_ns();
    connect_all();
    double connect_s = (double)(now_ns() - start) / 1e9;
    if (option.pubs || option.owed)
        run(connect_s);
    else
        hold(connect_s);
    return idle_lost ? 3 : 0;
}
