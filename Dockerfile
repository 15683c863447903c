# syntax=docker/dockerfile:1
# Two images from one file, for the API and for every kind of worker:
#   docker build --target cpu -t enginesmith:cpu .
#   docker build --target gpu -t enginesmith:gpu .
# Dependencies come as wheels; a compiler is needed for one small file that only workers with a GPU use. It stays in the
# build stage, as pip and the sources do.

FROM python:3.11-slim-bookworm AS cpu-build
WORKDIR /src
RUN python -m venv /opt/enginesmith
COPY pyproject.toml README.md LICENSE ./
COPY app ./app
COPY workers ./workers
COPY migrations ./migrations
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/enginesmith/bin/pip install --disable-pip-version-check '.[postgres,s3]' \
    && /opt/enginesmith/bin/pip uninstall --yes --quiet pip setuptools

FROM python:3.11-slim-bookworm AS cpu
RUN groupadd --system --gid 10001 enginesmith \
    && useradd --system --uid 10001 --gid enginesmith --no-create-home --home-dir /var/lib/enginesmith enginesmith \
    && install --directory --owner=enginesmith --group=enginesmith --mode=0700 /var/lib/enginesmith
COPY --from=cpu-build /opt/enginesmith /opt/enginesmith
ENV PATH=/opt/enginesmith/bin:$PATH \
    ENGINESMITH_DATA_DIR=/var/lib/enginesmith
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s --retries=3 \
    CMD ["enginesmith", "health", "--url", "http://127.0.0.1:8000"]
ENTRYPOINT ["enginesmith"]
CMD ["api", "--host", "0.0.0.0", "--port", "8000"]

# The CUDA runtime of the base image must be the one the TensorRT wheels are built for, and cuda-bindings
# of the same major version: a newer one asks for a newer driver. TensorRT wheels newer than 8.6 lie in
# NVIDIA's own index: name it with --build-arg TENSORRT_INDEX=URL.
FROM nvidia/cuda:12.9.1-base-ubuntu24.04 AS gpu-build
ARG TENSORRT_INDEX
WORKDIR /src
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/enginesmith
COPY pyproject.toml README.md LICENSE ./
COPY app ./app
COPY workers ./workers
COPY migrations ./migrations
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/enginesmith/bin/pip install --disable-pip-version-check ${TENSORRT_INDEX:+--extra-index-url "$TENSORRT_INDEX"} \
        '.[postgres,tensorrt]' 'cuda-bindings==12.9.*' \
    && /opt/enginesmith/bin/pip uninstall --yes --quiet pip

FROM nvidia/cuda:12.9.1-base-ubuntu24.04 AS gpu
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --system --gid 10001 enginesmith \
    && useradd --system --uid 10001 --gid enginesmith --no-create-home --home-dir /var/lib/enginesmith enginesmith \
    && install --directory --owner=enginesmith --group=enginesmith --mode=0700 /var/lib/enginesmith
COPY --from=gpu-build /opt/enginesmith /opt/enginesmith
ENV PATH=/opt/enginesmith/bin:$PATH \
    ENGINESMITH_DATA_DIR=/var/lib/enginesmith
USER 10001:10001
HEALTHCHECK --interval=30s --timeout=15s --start-period=60s --retries=3 CMD ["enginesmith", "health"]
ENTRYPOINT ["enginesmith"]
CMD ["worker", "--device", "cuda:0"]
