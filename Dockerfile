# Two images: Debian and envferry with its locked dependencies, nothing else.
# builder, the last one, is what environments are built in: docker build -t envferry:latest .
# host has what fetches and installs them: docker build --target host -t envferry-host:latest .
#
# Equal inputs give equal images, when the engine gives files and configuration one time (`make images`).
# What is locked: BASE by its digest, Debian's packages by APT_MIRROR, the URL of a snapshot of its archive,
# everything else by the hashes in requirements/.
ARG BASE=debian:bookworm-slim
FROM ${BASE} AS system
ARG APT_MIRROR=
ARG SOURCE_DATE_EPOCH=0
# Byte code that is written when something runs holds its source's time. What is kept is compiled with
# a digest instead; Python 3.11 does that equally each time.
ENV PYTHONDONTWRITEBYTECODE=1
RUN if [ -n "$APT_MIRROR" ]; then \
      rm -f /etc/apt/sources.list.d/*; \
      echo "deb [check-valid-until=no] $APT_MIRROR bookworm main" >/etc/apt/sources.list; \
    fi \
 && apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache \
      /var/log/* /tmp/*
COPY requirements /src/requirements
# The locked uv makes the wheel, for both images; it trusts its own list of authorities and does not
# read pip's settings, so a site's own are passed on.
FROM system AS wheel
RUN python3 -m venv /build && /build/bin/pip install --no-cache-dir --require-hashes -r /src/requirements/uv.txt
COPY pyproject.toml README.md LICENSE /src/
COPY pipeline /src/pipeline
RUN index=$(/build/bin/pip config get global.index-url 2>/dev/null || true) \
 && UV_SYSTEM_CERTS=1 /build/bin/uv build --no-cache --wheel --quiet ${index:+--default-index "$index"} \
    --build-constraints /src/requirements/dev.txt --out-dir /wheel /src

FROM system AS host
RUN sh /src/requirements/into_image.sh dependencies host.txt
COPY --from=wheel /wheel /wheel
RUN sh /src/requirements/into_image.sh envferry
ENTRYPOINT ["/opt/envferry/bin/envferry"]

FROM system AS builder
# libfaketime: `build --twice` builds the second time at another date.
RUN apt-get update \
 && apt-get install -y --no-install-recommends libfaketime \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache \
      /var/log/* /tmp/*
RUN sh /src/requirements/into_image.sh dependencies build.txt
COPY --from=wheel /wheel /wheel
RUN sh /src/requirements/into_image.sh envferry
ENTRYPOINT ["/opt/envferry/bin/envferry"]
