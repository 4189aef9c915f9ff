/* WebSocket beneath a protocol: the opening handshake, a frame around each packet that is sent, and
 * what came without its frames.
 *
 * The mask is zero: a client has to mask (RFC 6455, 5.3), and what a server does to take a mask away
 * does not depend on its value. So nothing has to be done to a packet after it is made.
 */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "load.h"

enum { CLOSE = 8, PING = 9, PONG = 10, RESPONSE_MAX = 4096 };

static void say(struct connection *c, const char *text) {
    int size = (int)strlen(text);
    int done = c->tls ? SSL_write(c->tls, text, size) : (int)send(c->fd, text, (size_t)size, 0);
    if (done != size) fail("the WebSocket request could not be sent");
}

/* Asks for a WebSocket while the socket still blocks. The answer is read to its end, not further. */
void web_open(struct connection *c) {
    char request[512], response[RESPONSE_MAX];
    size_t size = 0;
    snprintf(request, sizeof request,
             "GET /mqtt HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
             "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
             "Sec-WebSocket-Protocol: mqtt\r\n\r\n",
             option.host, option.port);
    say(c, request);
    while (size < 4 || memcmp(response + size - 4, "\r\n\r\n", 4)) {
        if (size == sizeof response - 1) fail("the answer to the WebSocket request has no end");
        int got = c->tls ? SSL_read(c->tls, response + size, 1)
                         : (int)recv(c->fd, response + size, 1, 0);
        if (got != 1) fail("the broker closed the connection after the WebSocket request");
        size++;
    }
    response[size] = 0;
    if (strncmp(response, "HTTP/1.1 101 ", 13)) fail("no WebSocket: %.60s", response);
}

size_t web_header_size(size_t size) { return size < 126 ? 6 : size < 65536 ? 8 : 14; }

void web_header(uint8_t *place, size_t size, int opcode) {
    size_t length_size = web_header_size(size) - 6;
    *place++ = (uint8_t)(0x80 | opcode);
    *place++ = (uint8_t)(0x80 | (length_size == 0 ? size : length_size == 2 ? 126 : 127));
    for (size_t i = length_size; i-- > 0;) *place++ = (uint8_t)(size >> (8 * i));
    memset(place, 0, 4);
}

/* Leaves in `data` what the frames carry, and says how much that is. */
size_t web_take(struct connection *c, uint8_t *data, size_t size) {
    size_t out = 0;
    for (size_t in = 0; in < size;) {
        if (c->frame_left) {
            size_t n = size - in < c->frame_left ? size - in : c->frame_left;
            if (!c->frame_is_control) {
                memmove(data + out, data + in, n);
                out += n;
            }
            in += n;
            c->frame_left -= n;
            continue;
        }
        c->frame_header[c->frame_header_size++] = data[in++];
        size_t length = c->frame_header[1] & 127;
        size_t wanted = c->frame_header_size < 2 ? 2 : length < 126 ? 2 : length == 126 ? 4 : 10;
        if (c->frame_header_size < wanted) continue;
        if (wanted > 2) {
            length = 0;
            for (size_t i = 2; i < wanted; i++) length = length << 8 | c->frame_header[i];
        }
        int opcode = c->frame_header[0] & 15;
        c->frame_header_size = 0;
        c->frame_header[1] = 0;
        c->frame_left = length;
        c->frame_is_control = opcode >= CLOSE;
        if (opcode == PING) web_header(reserve_bare(c, web_header_size(0)), 0, PONG);
        if (opcode == CLOSE) {
            cut(c, "the broker closed the WebSocket");
            return out;
        }
    }
    return out;
}
