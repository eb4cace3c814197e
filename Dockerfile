# Images of tipserve; deploy/README.md has the command of each. Targets: `serve` (the default) and `train`.
#   docker build -t tipserve:0.1.0 .
# One base for all: CUDA, cuDNN and TensorRT are wheels of EXTRA=gpu,otel, and the driver comes from the node. BASE takes a mirror.
# What pip needs to be told (an index, a certificate) comes as the secret `pip`, in the form of pip.conf, and stays in no layer.
# Packages are those of requirements/, by their hashes; scripts/lock_requirements.sh writes them, scripts/pin_base.sh the digest.
ARG BASE=python:3.11-slim@sha256:90744cff8f32887f075c47d747a173ff333e9e98801667af93c357fa9f5e28ff

# An environment with the dependencies of serving, and binutils, which strip what is installed.
FROM ${BASE} AS dependencies
# hadolint ignore=DL3008
RUN apt-get update -q && apt-get install -y -q --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*
ARG EXTRA=cpu,otel
WORKDIR /src
RUN python -m venv --without-pip /opt/venv
COPY requirements ./requirements
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip --python /opt/venv/bin/python install --no-cache-dir --require-hashes --no-deps -r "requirements/${EXTRA}.txt"
COPY pyproject.toml README.md LICENSE NOTICE ./

FROM dependencies AS build-serve
COPY scripts/trim_environment.sh scripts/
RUN scripts/trim_environment.sh /opt/venv
COPY model ./model
COPY service ./service
COPY tipserve_cli ./tipserve_cli
COPY connectors ./connectors
COPY clients/python/tipserve_client ./clients/python/tipserve_client
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --force-reinstall .

FROM dependencies AS build-train
ARG TRAIN_EXTRA=train,captions
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip --python /opt/venv/bin/python install --no-cache-dir --require-hashes --no-deps -r "requirements/${TRAIN_EXTRA}.txt"
COPY model ./model
COPY training ./training
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --force-reinstall .

# What all images have in common: a user without rights and a home, no pip, a place for what is cached.
FROM ${BASE} AS runtime
RUN groupadd --gid 10001 tipserve \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent \
       --shell /usr/sbin/nologin tipserve \
    && install --directory --owner=10001 --group=10001 --mode=0700 /var/cache/tipserve \
    # Nothing is to be installed into a running container.
    && find /usr/local/lib /usr/lib -maxdepth 4 \
       \( -path '*-packages/pip*' -o -path '*-packages/setuptools*' -o -path '*-packages/wheel*' -o -name ensurepip \) \
       -prune -exec rm -rf {} + \
    && rm -f /usr/local/bin/pip* /usr/local/bin/wheel /usr/bin/pip* \
    # Login shells, by which operators start Ray, would forget the PATH that is set below.
    && echo "export PATH=/opt/venv/bin:\$PATH" > /etc/profile.d/tipserve.sh
# The root may be read-only: what is downloaded, converted and compiled goes to the cache, to be mounted where it is wanted.
# The NVIDIA container toolkit mounts what the capabilities name; GKE's device plugin mounts the driver at this path.
ENV PATH=/opt/venv/bin:$PATH \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib64 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TIPSERVE_CACHE=/var/cache/tipserve \
    HF_HOME=/var/cache/tipserve/huggingface
WORKDIR /srv
USER 10001:10001
STOPSIGNAL SIGTERM

FROM runtime AS train
COPY --from=build-train /src/LICENSE /src/NOTICE /usr/share/doc/tipserve/
COPY --from=build-train /opt/venv /opt/venv
ARG BASE VERSION=0.1.0 REVISION=unknown CREATED="" SOURCE=""
LABEL org.opencontainers.image.title="tipserve train" \
      org.opencontainers.image.description="Trains dense vision-language encoders and packs them for serving" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.base.name="${BASE}"
# A job has no port, and its health is its exit status.
HEALTHCHECK NONE
ENTRYPOINT ["python", "-P", "-m", "training"]

# The service, the bundled model and a runtime. No torch, no compiler, no pip, no cache.
# With EXTRA=cpu-onnx,otel it has no OpenVINO, which the bundled model does not use.
# With EXTRA=cpu,otel,convert it also prepares released weights, as an init container does.
# The same image runs the command line where the entry point is `tipserve` (EXTRA=cpu,cli; on Ray EXTRA=cpu,cluster,stores).
FROM runtime AS serve
COPY --from=build-serve /src/LICENSE /src/NOTICE /usr/share/doc/tipserve/
COPY --from=build-serve /opt/venv /opt/venv
ARG BASE VERSION=0.1.0 REVISION=unknown CREATED="" SOURCE=""
LABEL org.opencontainers.image.title="tipserve" \
      org.opencontainers.image.description="Serves dense vision-language encoders: images and words in, embeddings and masks out" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.base.name="${BASE}"
# Published ports lead to the container's address, and the default without API keys is loopback.
ENV TIPSERVE_HOST=0.0.0.0
# REST, gRPC, metrics
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-P", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('TIPSERVE_METRICS_PORT', '8002') + '/v2/health/ready', timeout=3)"]
# -P: what is mounted into the working folder can never hide an installed package.
ENTRYPOINT ["python", "-P", "-m", "service"]
