"""Programs and libraries that use a node over the native protocol, and never import the broker.

The Python client, from the inside outwards. Sans-I/O: `addresses`, `errors`, `codecs`, `messages`,
`tracing`, `conversation` (ids and answers of one connection) and `websocket`. On anyio: `transport`
moves bytes, `link` is one connection, `session` is what outlives connections. What goes over a
session: `publishing`, `channels` (what comes until it is closed) with `subscriptions`, `queues`,
`streams` and `requests` (`owed` is what these have to settle or answer), and `retained`. `mesh` is
the face of all that. On top of it, `workers` have `handlers` deal with what comes, `work` says what
becomes of it, and `signals` when to stop; `circuit` is for requests. `blocking` is the face for
threads, over a `loop_thread`.

`command_line` holds the client commands of ``ganglion``; ``js`` what browsers load.
"""
