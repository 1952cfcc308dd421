# docker build --tag mdp .
# The pipeline with the drivers of Redis and Kafka and with scikit-learn; without the embedded servers, which a
# container has no use for: REDIS_URI (or KAFKA_BOOTSTRAP) and DATABASE_URL say where the servers are.
ARG PYTHON=3.12.13

FROM python:${PYTHON}-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

# The slow layer: it changes with the lock files alone.
COPY requirements.build.lock requirements.image.lock ./
RUN python -m venv --without-pip /opt/mdp \
 && python -m pip --python /opt/mdp/bin/python install \
      --require-hashes --only-binary :all: --requirement requirements.image.lock \
 && python -m pip install --require-hashes --only-binary :all: --requirement requirements.build.lock

COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY migrations migrations
COPY market_data_core market_data_core
COPY market_data_store market_data_store
COPY market_data_pipeline market_data_pipeline
RUN python -m hatchling build --target wheel --directory /dist \
 && python -m pip --python /opt/mdp/bin/python install --no-index --no-deps /dist/*.whl


FROM python:${PYTHON}-slim
LABEL org.opencontainers.image.title="mdp" \
      org.opencontainers.image.description="Stream processing for market data" \
      org.opencontainers.image.licenses="Apache-2.0"

# By number in USER, so that an orchestrator sees that it is not root.
RUN groupadd --gid 10001 mdp \
 && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /var/lib/mdp mdp \
 && install --directory --owner mdp --group mdp --mode 0750 /var/lib/mdp /var/spool/mdp

COPY --from=build /opt/mdp /opt/mdp
COPY configs /srv/mdp/configs

# The metrics port is reached from outside of the container.
ENV PATH=/opt/mdp/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MDP_HOME=/var/lib/mdp \
    MDP_CONFIG=/srv/mdp/configs/production.yaml \
    MDP_TELEMETRY__METRICS_HOST=0.0.0.0 \
    MDP_TELEMETRY__METRICS_PORT=9101

WORKDIR /srv/mdp
USER 10001:10001
EXPOSE 9101

# 503, which urlopen raises, is an event loop that is stuck; a server that is away is no reason to restart.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as http; http.urlopen(f'http://127.0.0.1:{os.environ[\"MDP_TELEMETRY__METRICS_PORT\"]}/healthz', timeout=4)"]

ENTRYPOINT ["mdp"]
CMD ["--help"]
