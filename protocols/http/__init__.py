"""HTTP/1.1 on h11, sans-I/O: one listener for operations, files of the browser, and WebSocket.

`connection` is the state machine, `routes` says what answers where, `server` is what connections
share.
"""
