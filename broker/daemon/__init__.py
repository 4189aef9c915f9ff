"""The daemon: configuration, command line, logging, start and stop."""
