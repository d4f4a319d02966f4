# The image of plugin, keeper, controller and command line.
#
#   docker build --tag registry.example.com/weightless:0.1.0 .
#
# pyfuse3 is a C extension that comes as source, so the stage that builds has a compiler and headers. It is made of what runs: its
# libraries are those that will be there. The image is what runs and /opt/weightless.
# The same source gives the same image, as far as Debian's packages are the same: give BASE by digest (debian:bookworm-slim@sha256:…),
# and times that are no times (docs/getting-started.md says how). Python packages are those of uv.lock, compared with its hashes.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS runtime
# The library, and not fusermount3: mounts are made by the plugin, with mount(2).
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates libfuse3-3 python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig/aux-cache /var/log/apt /var/log/*.log

FROM runtime AS build
ARG UV=0.13.9
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev libfuse3-dev pkg-config python3-dev python3-venv
RUN python3 -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir "uv==${UV}"
# Debugging information would have the names of temporary directories in it.
ENV UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_PYTHON=/usr/bin/python3 UV_PROJECT_ENVIRONMENT=/opt/weightless UV_NO_CACHE=1 \
    CFLAGS=-g0
WORKDIR /src
# The dependencies change more seldom than the code: a layer of their own.
COPY pyproject.toml uv.lock README.md LICENSE ./
# "--extra otel": with OpenTelemetry's traces.
ARG EXTRAS=
RUN /opt/uv/bin/uv sync --locked --no-default-groups ${EXTRAS} --no-install-project
COPY csi csi
COPY fuse fuse
COPY weightless weightless
# What uv notes of the time of the build goes. Byte code goes by the content of its source, not by its time: it is the same in every build, and is never written at run time.
RUN /opt/uv/bin/uv sync --locked --no-default-groups ${EXTRAS} --no-editable \
 && rm /opt/weightless/lib/python3*/site-packages/weightless-*.dist-info/uv_cache.json \
 && sed -i '/uv_cache.json/d' /opt/weightless/lib/python3*/site-packages/weightless-*.dist-info/RECORD \
 && python3 -m compileall -q -j 0 --invalidation-mode checked-hash /opt/weightless/lib

FROM runtime
COPY --from=build /opt/weightless /opt/weightless
ENV PATH=/opt/weightless/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
LABEL org.opencontainers.image.title="weightless" \
      org.opencontainers.image.description="Mounts AI models from OCI registries as lazily loaded, read-only volumes" \
      org.opencontainers.image.licenses="Apache-2.0"
# Nobody in particular, as the controller is. Plugin and keeper are root (deploy/README.md says why); the plugin starts the processes
# that parse and serve foreign bytes as users of their own.
USER 65532:65532
ENTRYPOINT ["weightless"]
CMD ["--help"]
