# syntax=docker/dockerfile:1
# The project with its pinned environment, for CPUs and NVIDIA GPUs: torch includes CUDA. See docs/scaling.md.
FROM python:3.11-slim-bookworm

# The compiler is for compiled training steps; the versions of these packages do not affect results.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends --yes g++ git make \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 person && install -d -o person -g person /home/person/cifar-pipeline
USER 1000
WORKDIR /home/person/cifar-pipeline

# The large layer, rebuilt only when dependencies change. For another package index: --build-arg PIP_INDEX_URL=...
ARG PIP_INDEX_URL
ENV PIP_NO_CACHE_DIR=1
COPY --chown=person .dvc .dvc
COPY --chown=person pyproject.toml constraints.txt README.md LICENSE Makefile ./
RUN mkdir src && make setup

COPY --chown=person . .
ENV PATH="/home/person/cifar-pipeline/.venv/bin:${PATH}"
CMD ["make"]
