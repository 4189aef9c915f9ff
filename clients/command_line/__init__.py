"""The commands of ``ganglion`` that work against a running node, over the native protocol.

`root` is the command itself, with a table of all commands. `failures` has the exit codes of the
whole command line, `connecting` and `contexts` say where the node is and who we are there,
`connection` is the blocking client. The other modules hold a family of commands each; each is
imported when one of its commands is named, and imports what that needs when it runs.
"""
