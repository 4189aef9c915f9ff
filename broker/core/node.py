"""The node: sessions, subscriptions, retained messages and routing put together.

Everything here is synchronous and free of I/O. Connections of any protocol call a `Node`; it calls
them back as the `Sink` of a session. What time it is, its `Timers` say; when a tick is over,
`flush` commits what has been recorded.
"""

from collections import deque
from collections.abc import Container
from functools import partial
from operator import itemgetter
from secrets import token_hex

from ganglion import GanglionError
from ganglion.broker.core.access import Access, Client, Decision
from ganglion.broker.core.canaries import sharing_options
from ganglion.broker.core.definitions import InvalidDefinition
from ganglion.broker.core.journal import Journal
from ganglion.broker.core.limits import Limits
from ganglion.broker.core.message import (
    PLAIN_TERMS,
    Delivery,
    Message,
    MessageProperties,
    Terms,
)
from ganglion.broker.core.reading import is_source, split_source
from ganglion.broker.core.refusals import Log, Refusals
from ganglion.broker.core.requests import Outcome, RequestRefused, Requests
from ganglion.broker.core.router import (
    Receiver,
    Route,
    Router,
    SharedGroup,
    Subscription,
    Target,
    subscription_cost,
)
from ganglion.broker.core.session_requests import (
    ANSWER_PREFIX,
    SessionRequests,
    is_service,
    split_service,
)
from ganglion.broker.core.sessions import NEVER_EXPIRES, Session, Sink, Will
from ganglion.broker.core.sources import Sources
from ganglion.broker.core.statistics import Statistics
from ganglion.broker.core.sys_topics import SysTopics
from ganglion.broker.core.timers import Timers
from ganglion.broker.core.topics import REPLY_PREFIX, InvalidTopic, split_shared
from ganglion.broker.store import Kind, Store

__all__ = ["REPLY_PREFIX", "DiskFull", "LimitReached", "NoRoom", "Node", "NotAllowed", "TooLarge"]

_NO_MEMBER = "no member of the shared subscription can take it"
_REPLY_RULE = "reply topics are read only by the client that they were given to"


class NotAllowed(GanglionError):
    """The client may not do this; `decision` says by which rule."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.rule)
        self.decision = decision


class LimitReached(GanglionError):
    """A limit of the node is reached; the message names it."""


class NoRoom(LimitReached):
    """What has to be kept cannot be taken now; it can be later."""


class TooLarge(LimitReached):
    """A queue or stream will never take what was published: it is larger than its limit."""


class DiskFull(NoRoom):
    """What has to be durable cannot be taken until there is room on the disk."""


class Node:
    """One broker: who is connected, who wants what, what is kept."""

    def __init__(
        self,
        *,
        limits: Limits,
        access: Access,
        store: Store,
        timers: Timers,
        log: Log,
        name: str = "ganglion",
        version: str = "",
        sys_interval_s: float = 10.0,
        wall_clock_offset_s: float = 0.0,
    ) -> None:
        """Make a node and load what the store has.

        `wall_clock_offset_s` is what to add to the monotonic time of `timers` to get Unix time;
        `sys_interval_s` is how often ``$SYS`` topics are published, 0 for never.
        """
        self._store = store
        self.limits = limits
        self.access = access
        self.timers = timers
        self.log = log
        self.name = name
        self.statistics = Statistics()
        self._is_draining = False
        self.refusals = Refusals(log, timers)
        self.router = Router(self.may_receive)
        self.sessions: dict[str, Session] = {}
        self.connected = 0
        """How many sessions have a connection."""
        self.journal = Journal(store, timers, limits, self.statistics, wall_clock_offset_s)
        self.retained = self.journal.retained
        self.sources = Sources(
            self.journal.shelf, self.statistics, self.router, lambda: self.access
        )
        self.queues, self.streams = self.sources.queues, self.sources.streams
        self.session_requests = SessionRequests(self, self.may_receive)
        self.requests = Requests(
            router=self.router,
            timers=timers,
            limits=limits,
            statistics=self.statistics,
            may_receive=lambda client, topic: self.access.receive(client, topic).allowed,
            as_responder=self.session_requests.subscriber,
        )
        self._load()
        self.sys_topics = SysTopics(self, version, sys_interval_s)

    # -- sessions --------------------------------------------------------------------------------

    def open_session(
        self,
        client: Client,
        sink: Sink,
        *,
        clean_start: bool,
        expiry_s: int,
        window: int,
        will: Will | None,
    ) -> tuple[Session, bool]:
        """Connect a client: its session, and whether it was there already.

        The caller greets the client, once that is durable, and then calls `start_session`: until
        then nothing is sent. An earlier connection of the same client identifier is closed
        (MQTT-3.1.4-3). Raises `NotAllowed` when the identifier belongs to another user,
        `LimitReached` when no more sessions can be kept.
        """
        session = self.sessions.get(client.client_id)
        if session is not None and session.client.user != client.user:
            raise NotAllowed(Decision(False, "the client identifier belongs to another user"))
        if session is None and len(self.sessions) >= self.limits.sessions_max:
            raise LimitReached(f"sessions_max = {self.limits.sessions_max} is reached")
        expiry_s = min(expiry_s, self.limits.session_expiry_max_s)
        if session is not None and session.connection is not None:
            old_sink = session.connection
            self._detach(session)
            old_sink.taken_over()
            self._after_detach(session, publish_will=True, ended=clean_start)
        elif session is not None and clean_start:
            self._end_session(session)
        session = self.sessions.get(client.client_id)  # None when it has ended just now
        present = session is not None
        if session is None:
            session = self.sessions[client.client_id] = Session(client, self.journal, expiry_s)
            if expiry_s:
                self._make_durable(session)
        else:
            if session.timer is not None:
                session.timer.cancel()
                session.timer = None
            if session.will_timer is not None:  # it is back before its will delay has passed
                session.will_timer.cancel()
                session.will_timer = None
            session.client = client
            was_durable = session.is_durable()
            session.expiry_s = expiry_s
            if was_durable and not session.is_durable():
                self.journal.forget_session(session)
        had_will, session.will = session.will is not None, will
        session.window = window
        session.connection = sink
        self.connected += 1
        self.statistics.clients_maximum = max(self.statistics.clients_maximum, self.connected)
        if session.is_durable():
            self.journal.put_session(session, None)
            if will is not None or had_will:
                self.journal.put_will(session, None)
        return session, present

    def _make_durable(self, session: Session) -> None:
        session.make_durable()
        assert session.backlog is not None
        session.backlog.admit = partial(self._admit, session)

    def _admit(self, session: Session, message: Message, shared: str | None) -> Terms | None:
        """Judge what was read from disk for the session; None: it may not have it any more."""
        if not self.may_receive(session, message.topic):
            self.statistics.drop("not allowed any more")
            return None
        parts = split_shared(shared) if shared is not None else None
        group = self.router.group(parts) if parts is not None else None
        if group is None:
            return PLAIN_TERMS[1]  # its recorded terms stay
        terms = group.terms(session, message.qos)
        return PLAIN_TERMS[1] if terms is None else terms

    def start_session(self, session: Session, sink: Sink) -> None:
        """The client has been greeted: send what was not acknowledged and what waits."""
        if session.connection is sink:
            self.router.invalidate_session(session)
            session.resume(sink)
            for subscription in session.subscriptions.values():
                if is_source(subscription.topic_filter):
                    self.sources.read(subscription)
                elif is_service(subscription.topic_filter):
                    try:
                        self._serve(session, subscription)
                    except LimitReached as error:  # it was lowered meanwhile
                        topic = subscription.topic_filter
                        self.refusals.refuse("serve", session.client, str(error), topic=topic)
            if self._is_draining:
                sink.drain()

    def close_session(
        self, session: Session, sink: Sink, *, publish_will: bool, expiry_s: int | None = None
    ) -> None:
        """The connection of the session has ended.

        `expiry_s` replaces the expiry interval (MQTT 5.0 section 3.14.2.2.2).
        """
        if session.connection is not sink:
            return  # taken over
        self._detach(session)
        if expiry_s is not None:
            session.expiry_s = min(expiry_s, self.limits.session_expiry_max_s)
        self._after_detach(session, publish_will=publish_will, ended=session.expiry_s == 0)

    def _detach(self, session: Session) -> None:
        self.sources.leave(session)
        session.disconnected()
        self.connected -= 1
        self.session_requests.disconnected(session)

    def _after_detach(self, session: Session, *, publish_will: bool, ended: bool) -> None:
        will = session.will
        if not publish_will and will is not None:
            session.will = will = None
            if session.is_durable():
                self.journal.put_will(session, None)
        if ended or session.expiry_s == 0:
            self._end_session(session)
            return
        if session.subscriptions:
            self.router.invalidate_session(session)
        self._give_back_shared(session, ended=False)
        ends_at = None
        if session.expiry_s != NEVER_EXPIRES:
            ends_at = self.timers.now + session.expiry_s
            session.timer = self.timers.at(ends_at, partial(self._expire, session))
        self.journal.put_session(session, ends_at)
        if will is not None:
            if will.delay_s and will.delay_s < session.expiry_s:
                self._send_will_later(session, self.timers.now + will.delay_s)
            elif not will.delay_s:
                self._send_will(session)
            # else: it is sent at the session's end, which comes first

    def _send_will_later(self, session: Session, when: float) -> None:
        session.will_timer = self.timers.at(when, partial(self._send_delayed_will, session))
        self.journal.put_will(session, when)

    def _send_delayed_will(self, session: Session, _now: float) -> None:
        session.will_timer = None
        self._send_will(session)

    def _send_will(self, session: Session) -> None:
        will, session.will = session.will, None
        if will is None:
            return
        if session.is_durable():
            self.journal.put_will(session, None)
        message = will.message
        if will.expiry_s is not None:  # 3.1.3.2.4: it counts from now
            message.expires_at = self.timers.now + will.expiry_s
        client = session.client
        decision = self.may_publish(client, message.topic, message.qos, message.retain)
        if not decision.allowed:
            self.refusals.refuse("publish will", client, decision.rule, topic=message.topic)
            self.statistics.drop("refused")
            return
        try:
            self.publish(message, publisher=session, is_told=False)
        except LimitReached as error:
            self.refusals.refuse("publish will", client, str(error), topic=message.topic)
            self.statistics.drop("refused")

    def _expire(self, session: Session, _now: float) -> None:
        session.timer = None
        self.statistics.clients_expired += 1
        self._end_session(session)

    def _end_session(self, session: Session) -> None:
        for timer in (session.timer, session.will_timer):
            if timer is not None:
                timer.cancel()
        session.timer = session.will_timer = None
        if self.sessions.get(session.client.client_id) is session:
            del self.sessions[session.client.client_id]
        self._give_back_shared(session, ended=True)
        self.session_requests.ended(session)
        self.journal.forget_session(session)
        session.discard_queue()
        for subscription in session.subscriptions.values():
            if is_source(subscription.topic_filter):
                self.sources.end(subscription)
            elif not is_service(subscription.topic_filter):
                self.router.remove(subscription)
        session.subscriptions = {}
        # 3.1.3.2.2: the will is sent when its delay has passed or the session ends
        self._send_will(session)

    def _give_back_shared(self, session: Session, *, ended: bool) -> None:
        """Give other members what this one had of its shared subscriptions (4.8.2).

        QoS 1 goes to another member as soon as this one has gone; QoS 2 never does (4.8.2-5), but
        what was never sent to the leaving member may go at its session's end.
        """
        if not session.inflight and not session.is_behind:
            return
        sent = {id(delivery) for delivery in session.inflight.values()}

        def wanted(delivery: Delivery) -> bool:
            terms = delivery[1]
            if terms.group is None or (terms.qos == 2 and (not ended or id(delivery) in sent)):
                return False
            if ended:
                return True
            members = terms.group.members
            return any(each[0].sink is not None for each in members if each[0] is not session)

        for message, terms, _, _ in session.take_back(wanted, all_of_it=ended):
            self.give_to_another(message, terms, session)

    def give_to_another(self, message: Message, terms: Terms, leaving: Session) -> None:
        """Give a message of a shared subscription to another member than this one."""
        assert terms.group is not None
        if not terms.group.deliver(message, self.may_receive, leaving=leaving):
            self.statistics.drop("no member of the shared subscription is left")

    # -- subscriptions ---------------------------------------------------------------------------

    def may_subscribe(self, session: Session, topic_filter: str, qos: int) -> Decision:
        """Whether the client may subscribe with this (valid) filter, which is no source's."""
        if topic_filter.startswith(REPLY_PREFIX):
            token = session.reply_token
            allowed = token is not None and topic_filter.split("/")[1] == token
            return Decision(allowed, _REPLY_RULE)
        try:
            service = split_service(topic_filter)
        except InvalidTopic as error:
            return Decision(False, str(error))
        if service is not None:  # who may read the requests may answer them
            topic_filter = service[1]
        return self.access.subscribe(session.client, topic_filter, qos)

    def subscribe(
        self, subscription: Subscription, options: tuple[tuple[str, str], ...] = ()
    ) -> bool:
        """Let the subscription take effect; whether its session had the same filter before.

        `options` are for the queue or stream that it names, beside those in its filter, or for the
        shared subscription. Raises `NotAllowed`, `LimitReached`, and `InvalidDefinition` for what
        cannot be a queue or stream, or an option.
        Retained messages come with `send_retained`.
        """
        session = subscription.session
        wanted = split_source(subscription.topic_filter)
        if wanted is None:
            topic_filter = subscription.topic_filter
            decision = self.may_subscribe(session, topic_filter, subscription.qos)
            if not decision.allowed:
                raise NotAllowed(decision)
            if options and split_shared(topic_filter):
                subscription.options = sharing_options(options)
        else:
            topic_filter = subscription.topic_filter = wanted.subscription
        existed = topic_filter in session.subscriptions
        limit = self.limits.subscriptions_per_client_max
        cost = 0 if existed else subscription_cost(topic_filter)
        if session.subscription_cost + cost > limit:
            raise LimitReached(f"subscriptions_per_client_max = {limit} is reached")
        if session.replay and len(session.replay) > self.limits.queued_messages_per_session_max:
            raise LimitReached("too many retained messages wait for this client already")
        if is_service(topic_filter):
            self._serve(session, subscription)
        elif wanted is None:
            self.router.add(subscription)
        else:
            decision = self.sources.subscribe(subscription, wanted, options)
            if not decision.allowed:
                raise NotAllowed(decision)
        session.subscriptions[topic_filter] = subscription
        session.subscription_cost += cost
        if session.is_durable():
            self.journal.put_subscription(subscription)
        return existed

    def send_retained(self, subscription: Subscription) -> None:
        """Send the retained messages that match a subscription which has just been made.

        One to a queue or a stream begins to read there.
        """
        session, topic_filter = subscription.session, subscription.topic_filter
        if is_source(topic_filter):
            if session.subscriptions.get(topic_filter) is subscription:  # it is not over already
                self.sources.read(subscription)
            return
        if split_shared(topic_filter):
            return  # 4.8.2: none are sent to shared subscriptions
        found = self.retained_for(subscription)
        if found:
            session.start_replay(found)

    def retained_for(self, subscription: Subscription) -> list[Delivery]:
        """The retained messages that match a subscription to topics, if its session may have them.

        Those that have expired are forgotten.
        """
        session, topic_filter = subscription.session, subscription.topic_filter
        identifiers = (subscription.identifier,) if subscription.identifier else ()
        terms = [Terms(qos, True, identifiers) for qos in range(subscription.qos + 1)]
        found: list[Delivery] = []
        expired: list[str] = []
        now = self.timers.now
        for message in self.retained.matching(topic_filter):
            if message.expires_at is not None and message.expires_at <= now:
                expired.append(message.topic)
            elif self.may_receive(session, message.topic):
                found.append((message, terms[min(message.qos, subscription.qos)], 0, None))
        for topic in expired:
            self.journal.forget_retained(topic)
        return found

    def unsubscribe(self, session: Session, topic_filter: str) -> bool:
        """End a subscription; whether there was one."""
        try:
            wanted = split_source(topic_filter)
        except InvalidDefinition:
            return False
        if wanted is not None:
            topic_filter = wanted.subscription
        subscription = session.subscriptions.get(topic_filter)
        if subscription is None:
            return False
        if wanted is not None:
            self.sources.unsubscribe(subscription)
        elif is_service(topic_filter):
            self.session_requests.end_service(session, topic_filter)
        else:
            self.router.remove(subscription)
        del session.subscriptions[topic_filter]
        session.subscription_cost -= subscription_cost(topic_filter)
        if session.is_durable():
            self.journal.forget_subscription(subscription)
        return True

    def _serve(self, session: Session, subscription: Subscription) -> None:
        try:
            self.session_requests.serve(session, subscription)
        except RequestRefused as refusal:
            raise LimitReached(str(refusal)) from None

    def reply_prefix(self, session: Session) -> str:
        """The topic below which only this client may read (MQTT 5.0 section 4.10)."""
        if session.reply_token is None:
            session.reply_token = token_hex(8)
        return f"{REPLY_PREFIX}{session.reply_token}"

    # -- messages --------------------------------------------------------------------------------

    def may_publish(self, client: Client, topic: str, qos: int, retain: bool) -> Decision:
        """Whether the client may publish to this (valid) topic with this QoS and retain flag."""
        if topic[:1] == "$":
            if topic.startswith(ANSWER_PREFIX):
                return Decision(not retain, "an answer to a request is not retained")
            return self.sources.may_send(client, topic, qos, retain)
        if topic.startswith(REPLY_PREFIX):
            return Decision(not retain, "reply topics take no retained messages")
        return self.access.publish(client, topic, qos, retain)

    def publish_mask(self, client: Client, topic: str) -> int:
        """What `may_publish` allows, as bits: ``1 << (qos + 3 * retain)``."""
        if topic[:1] == "$":
            may_send = self.sources.may_send
            return sum(1 << qos for qos in (0, 1, 2) if may_send(client, topic, qos, False).allowed)
        if topic.startswith(REPLY_PREFIX):
            return 0b000111
        return self.access.publish_mask(client, topic)

    def publish(
        self,
        message: Message,
        route: Route | None = None,
        publisher: Session | None = None,
        *,
        is_told: bool = True,
    ) -> int:
        """Route a message that its publisher was allowed to send; to how many targets it goes.

        `route` is that of its topic where the caller has it (it must be valid).
        `Message.durable` says afterwards whether to wait for the commit before acknowledging it.
        Raises `LimitReached` when it is to be retained and there is no room, `NoRoom` when a queue
        or stream does not take it now, `TooLarge` when one never will, `DiskFull` when any of it
        has to be durable and cannot be: then nobody gets it. But what has QoS 0 goes wherever
        there is room; and where the publisher cannot be told (`is_told`), what is too large for
        one of its targets goes to the others, for waiting would be in vain. What has a response
        topic and goes to nobody raises `NotAllowed` or `LimitReached` if those cannot be asked
        that serve its topic.
        """
        retain = message.retain
        if route is None:
            topic = message.topic
            if publisher is not None and topic.startswith(ANSWER_PREFIX):
                return int(self.session_requests.answer(publisher, message))
            if topic[:1] == "$" and is_source(topic) and self.sources.find(topic) is None:
                try:
                    self.sources.make(topic)
                except InvalidDefinition as error:
                    raise LimitReached(str(error)) from None
            route = self.router.route(topic)
            about = message.properties
            if publisher is not None and about is not None and about.response_topic is not None:
                delivered = self.publish(message, route, publisher, is_told=is_told)
                return delivered + self._ask(publisher, message, delivered)
        targets = route.targets
        if self._store.is_full:
            targets = self._check_disk(message, route)
        if message.qos and route.bounded:
            self._check_room(message, route, publisher, is_told)
        if retain:
            if not self.retained.has_room_for(message, self.limits):
                raise LimitReached("retained_messages_max or retained_bytes_max is reached")
            self.journal.retain(message)
        groups, durable = route.groups, route.durable
        members: list[tuple[Session, Terms]] = []
        if message.qos and groups and len(groups) + durable > 1:
            members, groups = self._choose_members(message, groups), []
            durable += sum(session.is_durable() for session, _ in members)
        if durable > 1:
            self.journal.shelf.payloads.share(message)
        count = self.forward(message, targets, groups, publisher) + len(members)
        for session, terms in members:
            session.deliver(message, terms)
        if retain:
            message.forms = None  # the retained message would keep its encodings for good
        return count

    def _choose_members(
        self, message: Message, groups: list[SharedGroup]
    ) -> list[tuple[Session, Terms]]:
        """Who gets the message of each group: to be known before the first delivery is recorded."""
        chosen = [group.choose(message, self.may_receive) for group in groups]
        members = [each for each in chosen if each is not None]
        if len(members) < len(groups):
            self.statistics.drop(_NO_MEMBER, len(groups) - len(members))
        return members

    def check_size(self, message: Message, route: Route) -> None:
        """Raise `TooLarge` if a queue or stream that the message goes to will never take it."""
        for bound in route.bounded:
            rejection = bound.refusal(message)
            if rejection is not None and rejection.is_final:
                raise TooLarge(rejection.text)

    def _check_room(
        self, message: Message, route: Route, publisher: Session | None, is_told: bool
    ) -> None:
        """Raise `NoRoom` or `TooLarge` where one target does not take the message."""
        for bound in route.bounded:
            rejection = bound.refusal(message)
            if rejection is None:
                continue
            if not rejection.is_final:
                raise NoRoom(rejection.text)
            if is_told:
                raise TooLarge(rejection.text)
            client = None if publisher is None else publisher.client
            self.refusals.refuse("publish", client, rejection.text, topic=message.topic)

    def _ask(self, publisher: Session, message: Message, delivered: int) -> int:
        try:
            return self.session_requests.ask(publisher, message, delivered)
        except RequestRefused as refusal:
            text = str(refusal)
            self.refusals.refuse("request", publisher.client, text, topic=message.topic)
            if delivered:
                return 0
            if refusal.outcome is Outcome.NOT_ALLOWED:
                raise NotAllowed(Decision(False, text)) from None
            raise LimitReached(text) from None

    @property
    def is_full(self) -> bool:
        """Whether the store waits for room: what has to be durable is refused."""
        return self._store.is_full

    def _check_disk(self, message: Message, route: Route) -> list[Target]:
        """The disk is full: which targets the message may go to. Raises `DiskFull`."""
        targets = route.targets
        receivers: list[Receiver] = [target.receiver for target in targets]
        receivers += [member[0] for group in route.groups for member in group.members]
        recorded = message.retain and message.topic[:1] != "$"  # see `Journal.retain`
        if recorded or (message.qos and any(each.is_durable() for each in receivers)):
            raise DiskFull("the disk is full: what has to be durable is not taken")
        transient = [each for each in targets if isinstance(each.receiver, Session)]
        for _ in range(len(targets) - len(transient)):  # queues and streams, which keep QoS 0 too
            self.statistics.drop("the disk is full")
        return transient

    def forward(
        self,
        message: Message,
        targets: list[Target],
        groups: list[SharedGroup],
        publisher: Session | None,
    ) -> int:
        """Give the message to these targets of its route; to how many it goes."""
        qos = message.qos
        count = 0
        for target in targets:
            receiver = target.receiver
            if target.no_local and target.publisher is publisher:
                if target.own is None:
                    continue
                target = target.own
            terms = target.terms[qos]
            if message.retain and target.retain_as_published:
                terms = Terms(terms.qos, True, terms.identifiers)
            receiver.deliver(message, terms)
            count += 1
        for group in groups:
            if group.deliver(message, self.may_receive):
                count += 1
            else:
                self.statistics.drop(_NO_MEMBER)
        return count

    def publish_own(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        qos: int = 0,
        properties: MessageProperties | None = None,
    ) -> int:
        """Publish in the node's own name; to how many targets it goes."""
        message = Message(topic, payload, qos, retain, properties)
        return self.publish(message)

    def may_receive(self, session: Session, topic: str) -> bool:
        """Whether messages of this topic may go to the session, by the rules as they are now."""
        if topic.startswith(REPLY_PREFIX):
            token = session.reply_token
            return token is not None and topic.split("/")[1] == token
        return self.access.receive(session.client, topic).allowed

    # -- the course of things --------------------------------------------------------------------

    def flush(self) -> None:
        """The tick is over: commit what was recorded in it."""
        self.journal.commits.flush()

    def reload(
        self,
        *,
        limits: Limits | None = None,
        access: Access | None = None,
        users: Container[str] | None = None,
    ) -> None:
        """Replace limits or rules; both act at once on what is connected, subscribed and queued.

        `users` are those that may go on; None for everybody.
        """
        if limits is not None:
            self.limits = self.journal.limits = self.requests.limits = limits
        if access is None:
            return
        self.access = access
        self.session_requests.access_changed()
        self.router.invalidate_all()
        for session in list(self.sessions.values()):
            self._drop_forbidden(session)
            sink = session.connection
            if sink is None:
                continue
            client = session.client
            decision = access.connect(client.user, client.address)
            user = client.user
            if not decision.allowed:
                sink.expel(decision.rule)
            elif (
                users is not None
                and user is not None
                and user != client.certificate  # which needs no password
                and user not in users
            ):
                sink.expel("the user does not exist any more")
            else:
                sink.access_changed()
                self.sources.rules_changed(session)

    def _drop_forbidden(self, session: Session) -> None:
        if session.replay:
            session.replay = deque(
                each for each in session.replay if self.may_receive(session, each[0].topic)
            )
        if not session.inflight and not session.is_behind:
            return

        def forbidden(delivery: Delivery) -> bool:
            return not self.may_receive(session, delivery[0].topic)

        for message, _, _, _ in session.take_back(forbidden, all_of_it=False):
            self.refusals.refuse(
                "receive", session.client, "the rules have changed", topic=message.topic
            )
            self.statistics.drop("not allowed any more")

    def drain(self) -> None:
        """The node stops: say goodbye to every client, and to those that are being greeted then."""
        self._is_draining = True
        for sink in self._sinks():
            sink.drain()

    def close(self) -> None:
        """Commit what is left and stop the node's own timers."""
        self.sys_topics.stop()
        self.flush()

    def _sinks(self) -> list[Sink]:
        return [each.connection for each in self.sessions.values() if each.connection is not None]

    # -- start -----------------------------------------------------------------------------------

    def _load(self) -> None:
        """Make sessions and retained messages from the committed records."""
        journal = self.journal
        journal.read_retained()
        now = self.timers.now
        for client, expiry_s, ends_at, backlog_id in journal.read_sessions():
            session = Session(client, journal, expiry_s, journal.shelf.open(backlog_id))
            self._make_durable(session)
            self.sessions[client.client_id] = session
            if ends_at is None and expiry_s != NEVER_EXPIRES:
                ends_at = now + expiry_s  # it was connected when the node stopped
            if ends_at is not None:
                session.timer = self.timers.at(ends_at, partial(self._expire, session))
        orphans = 0  # records whose session is not there: the store left its record out as damaged
        for client_id, topic_filter, options in journal.read_subscriptions():
            owner = self.sessions.get(client_id)
            if owner is None:
                orphans += 1
                continue
            qos, no_local, retain_as_published, identifier, source_options = options
            subscription = Subscription(
                owner,
                topic_filter,
                qos,
                no_local=bool(no_local),
                retain_as_published=bool(retain_as_published),
                identifier=identifier,
            )
            subscription.options = tuple((name, value) for name, value in source_options)
            if not (is_source(topic_filter) or is_service(topic_filter)):
                self.router.add(subscription)
            owner.subscriptions[topic_filter] = subscription
            if topic_filter.startswith(REPLY_PREFIX):  # the client may rely on what it was told
                owner.reply_token = topic_filter.split("/")[1]
            owner.subscription_cost += subscription_cost(topic_filter)
        orphans += self._load_packet_ids() + self._load_wills()
        if not self._store.statistics().damaged:  # else they may belong to a record left out
            used = {each.backlog.identifier for each in self.sessions.values() if each.backlog}
            journal.shelf.discard_others(used | self.queues.identifiers())
            self.streams.discard_others()
        if orphans:
            self.log.warning("records without their session were left out", count=orphans)

    def _load_wills(self) -> int:
        """How many wills had no session. Those of clients that were connected are due from now."""
        orphans = 0
        for client_id, will, when in self.journal.read_wills():
            session = self.sessions.get(client_id)
            if session is None:
                orphans += 1
                continue
            session.will = will
            if when is None:
                when = self.timers.now + min(will.delay_s, session.expiry_s)
            delayed = partial(self._send_delayed_will, session)
            session.will_timer = self.timers.at(when, delayed)
        return orphans

    def _load_packet_ids(self) -> int:
        """How many records had no session that they belong to."""
        orphans = 0
        # in order of sending, which is not that of the identifiers once they wrapped around
        on_the_way = sorted(self.journal.read_packet_ids(Kind.IN_FLIGHT), key=itemgetter(2))
        for client_id, packet_id, number in on_the_way:
            session = self.sessions.get(client_id)
            if session is None:
                orphans += 1
            else:
                session.load_in_flight(packet_id, number)
        for client_id, packet_id, _ in self.journal.read_packet_ids(Kind.RECEIVED):
            session = self.sessions.get(client_id)
            if session is None:
                orphans += 1
                continue
            if session.received is None:
                session.received = set()
            session.received.add(packet_id)
        return orphans
