# The serving image: the service, the bundled model and a CPU runtime. No torch, no compiler, no pip cache.
#   docker build -t tipserve:0.1.0 .
# The same image runs the command line where the entry point is `tipserve` (EXTRA=cpu,cli; on Ray EXTRA=cpu,cluster).
# The base is an argument, so that a CUDA image with Python and pip can take its place, with EXTRA=gpu,otel.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
ARG EXTRA=cpu,otel
WORKDIR /src
RUN python -m venv --without-pip /opt/venv
COPY pyproject.toml README.md LICENSE NOTICE ./
# Dependencies first, from a distribution that is still empty: a change of code keeps this layer.
# Their versions are in pyproject.toml, where the rule below does not look.
# hadolint ignore=DL3013
RUN pip --python /opt/venv/bin/python install --no-cache-dir ".[${EXTRA}]"
COPY model ./model
COPY service ./service
RUN pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --force-reinstall .

FROM ${BASE} AS serve
RUN groupadd --gid 10001 tipserve \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent \
       --shell /usr/sbin/nologin tipserve
COPY --from=build /opt/venv /opt/venv
# Login shells, by which operators start Ray, would forget the PATH that is set here.
RUN echo "export PATH=/opt/venv/bin:\$PATH" > /etc/profile.d/tipserve.sh
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /srv
USER 10001:10001
# REST, gRPC, metrics
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-P", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('TIPSERVE_METRICS_PORT', '8002') + '/v2/health/ready', timeout=3)"]
# -P: what is mounted into the working folder can never hide an installed package.
ENTRYPOINT ["python", "-P", "-m", "service"]
