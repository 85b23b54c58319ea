# The image in which environments are built: Debian and envferry with its locked dependencies, nothing else.
# docker build -t envferry:latest .
FROM debian:bookworm-slim
# libfaketime: `build --twice` builds the second time at another date.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates libfaketime python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
# The dependencies first, in a layer that changes to the code leave alone.
COPY requirements /src/requirements
RUN python3 -m venv /opt/envferry \
 && /opt/envferry/bin/pip install --no-cache-dir --require-hashes -r /src/requirements/build.txt
COPY pyproject.toml README.md LICENSE /src/
COPY pipeline /src/pipeline
# uv trusts its own list of authorities and does not read pip's settings: a site's own are passed on.
RUN index=$(/opt/envferry/bin/pip config get global.index-url 2>/dev/null || true) \
 && UV_SYSTEM_CERTS=1 /opt/envferry/bin/uv pip install --no-cache --python /opt/envferry/bin/python \
    ${index:+--default-index "$index"} \
    --no-deps --build-constraints /src/requirements/dev.txt /src \
 && rm -r /src \
 && ln -s /opt/envferry/bin/envferry /usr/local/bin/envferry
ENTRYPOINT ["/opt/envferry/bin/envferry"]
