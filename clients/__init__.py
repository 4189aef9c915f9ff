"""Programs and libraries that use a node over the native protocol, and never import the broker.

`addresses`, `errors`, `conversation` and `websocket` are what every client needs, sans-I/O;
`command_line` holds the client commands of ``ganglion``; ``js`` what browsers load.
"""
