"""WebSocket (RFC 6455) around any other protocol, sans-I/O.

`upgrade` judges the request, `connection` carries a `Protocol` once it is accepted, `frames` has
what is hot, `deflate` the one extension.
"""
