# syntax=docker/dockerfile:1
# The image of the node plugin and of the command line. Two stages: pyfuse3 is a C extension that comes as source, so the first stage
# has a compiler and headers; the second has only what runs.
# What the tests run on; others that pyproject.toml allows may be given with --build-arg.
ARG PYTHON=3.11
ARG DEBIAN=bookworm

FROM python:${PYTHON}-slim-${DEBIAN} AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev libfuse3-dev pkg-config \
 && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir uv
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=/opt/weightless
WORKDIR /src
# The dependencies change more seldom than the code: a layer of their own.
COPY pyproject.toml uv.lock README.md LICENSE ./
RUN uv sync --locked --no-default-groups --no-install-project
COPY csi csi
COPY fuse fuse
COPY weightless weightless
RUN uv sync --locked --no-default-groups --no-editable

FROM python:${PYTHON}-slim-${DEBIAN}
# fuse3 brings libfuse3 and fusermount3. The mounts themselves are made by the plugin, with mount(2).
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates fuse3 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/weightless /opt/weightless
ENV PATH=/opt/weightless/bin:$PATH PYTHONUNBUFFERED=1
LABEL org.opencontainers.image.title="weightless" \
      org.opencontainers.image.description="Mounts AI models from OCI registries as lazily loaded, read-only volumes" \
      org.opencontainers.image.licenses="Apache-2.0"
# Root, since the node plugin mounts; it starts the processes that parse and serve foreign bytes as an unprivileged user.
ENTRYPOINT ["weightless"]
CMD ["--help"]
