"""``python -m ganglion`` is the ``ganglion`` command."""

from ganglion.broker.daemon.cli import main

if __name__ == "__main__":
    main()
