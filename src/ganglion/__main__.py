"""``python -m ganglion`` is the ``ganglion`` command."""

from ganglion.clients.command_line.root import main

if __name__ == "__main__":
    main()
