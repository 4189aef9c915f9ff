"""What messages mean: topics, subscriptions, sessions, access. No I/O, no protocol, no clock of its own."""
