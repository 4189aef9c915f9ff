"""The commands of ``ganglion`` that work against a running node, over the native protocol.

`failures` has the exit codes of the whole command line, `connecting` and `contexts` say where the
node is and who we are there, `connection` is the blocking client. The other modules hold a family
of commands each; they import what they need when they run, so that ``ganglion --help`` is fast.
"""
