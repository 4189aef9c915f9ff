"""The native protocol: frames of MessagePack or JSON between clients and a node.

`docs/protocol.md` specifies it. `operations`, `frames` and `properties` are what both sides need:
they import nothing of the broker but `core.message`, so that clients can use them. The rest is the
node's side.
"""
