#!/bin/sh
# Entry point of the container: decides as whom Ganglion runs, and becomes it.
#
# The image runs as 1883:1883. For a bind mount that belongs to somebody else there are two ways:
#   docker run --user 1000:1000 ...                      the container is that user from the start
#   docker run --user root -e PUID=1000 -e PGID=1000 ... the data are given to that user first
# Ganglion itself never runs as root.
set -eu

die() {
    echo "ganglion: $1" >&2
    exit 64
}

number() {
    case $2 in
        '' | *[!0-9]*) die "$1 is '$2'; it must be a number" ;;
    esac
    [ "$2" -gt 0 ] || die "$1 is 0; Ganglion does not run as root"
}

data=${GANGLION_DATA_DIRECTORY:-/data}

# What follows the image's name are a command of `ganglion` and its flags; flags alone mean `serve`.
# For a shell: docker run --entrypoint sh ...
case ${1:-} in
    '' | -*) set -- serve "$@" ;;
esac
set -- ganglion "$@"

if [ "$(id -u)" = 0 ]; then
    uid=${PUID:-1883}
    gid=${PGID:-$uid}
    number PUID "$uid"
    number PGID "$gid"
    mkdir -p "$data"
    # Only what is somebody else's: a large volume is not written over at every start.
    find "$data" \( ! -uid "$uid" -o ! -gid "$gid" \) -exec chown -h "$uid:$gid" {} +
    exec setpriv --reuid "$uid" --regid "$gid" --clear-groups --no-new-privs -- "$@"
fi

if [ "${PUID:-$(id -u)}" != "$(id -u)" ] || [ "${PGID:-$(id -g)}" != "$(id -g)" ]; then
    die "PUID=${PUID:-} PGID=${PGID:-} can only be followed by a container that starts as root (docker run --user root): this one runs as $(id -u):$(id -g)"
fi
exec "$@"
