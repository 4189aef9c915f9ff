# Ganglion in a container: slim, one process, not root.
#
#   docker build -t ganglion .
#   docker run -p 1883:1883 -p 8080:8080 -v ganglion:/data -e GANGLION_ACCESS_USERS=/data/users ganglion
#
# Every key of the configuration is an environment variable (docs/configuration.md): the key
# log.level is GANGLION_LOG_LEVEL. GANGLION_CONFIG names a mounted TOML file.

FROM python:3.11-slim-bookworm AS build
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE ./
COPY src src
COPY bridges bridges
COPY broker broker
COPY clients clients
COPY protocols protocols
RUN python -m venv /opt/ganglion \
    && /opt/ganglion/bin/pip install --no-cache-dir --disable-pip-version-check '.[broker]' \
    && /opt/ganglion/bin/ganglion version

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="Ganglion" \
      org.opencontainers.image.description="A lightweight message broker and event mesh" \
      org.opencontainers.image.licenses="Apache-2.0"
# A fixed number, so that a volume's owner is the same in every version of the image.
RUN groupadd --gid 1883 ganglion \
    && useradd --uid 1883 --gid 1883 --no-create-home --home-dir /data --shell /usr/sbin/nologin ganglion \
    && install --directory --owner=1883 --group=1883 --mode=0750 /data
COPY --from=build /opt/ganglion /opt/ganglion
COPY --chmod=0755 packaging/docker-entrypoint.sh /usr/local/bin/docker-entrypoint.sh
# A container is reached from outside of it, so it listens on all of its addresses. Without users it
# therefore refuses to start, unless GANGLION_ACCESS_INSECURE=true says that this is meant.
ENV PATH=/opt/ganglion/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    GANGLION_LISTENERS_MQTT=0.0.0.0:1883 \
    GANGLION_LISTENERS_WEB=0.0.0.0:8080 \
    GANGLION_DATA_DIRECTORY=/data
USER 1883:1883
WORKDIR /data
VOLUME /data
EXPOSE 1883 8080 8443 8883
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=5s --retries=3 CMD ["ganglion", "health"]
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["serve"]
