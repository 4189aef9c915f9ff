"""One folder per protocol, sans-I/O: bytes in, bytes and core calls out, time is passed in."""
