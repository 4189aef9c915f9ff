"""What messages mean: topics, subscriptions, sessions, access. No I/O, no clock of its own."""
