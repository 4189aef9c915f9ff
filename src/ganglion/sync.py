"""The client for programs without an event loop: scripts, threads, views of Django or Flask.

    with ganglion.sync.connect("ganglion://localhost:7883") as mesh:
        mesh.publish("orders/created", {"order": 7})
        with mesh.queue("billing").consume() as jobs:
            for job in jobs:
                with job:
                    ...

The names are those of the asynchronous client, without ``await``; docs/sync.md says what is
different. One mesh may be used by any number of threads.
"""

from ganglion.clients.blocking import (
    Connection,
    Consumer,
    Follower,
    GroupFollower,
    GroupRecord,
    Items,
    Job,
    Mesh,
    Publisher,
    Queue,
    Request,
    Retained,
    Service,
    States,
    Stream,
    StreamGroup,
    Subscription,
    Worker,
    connect,
)

__all__ = [
    "Connection",
    "Consumer",
    "Follower",
    "GroupFollower",
    "GroupRecord",
    "Items",
    "Job",
    "Mesh",
    "Publisher",
    "Queue",
    "Request",
    "Retained",
    "Service",
    "States",
    "Stream",
    "StreamGroup",
    "Subscription",
    "Worker",
    "connect",
]
