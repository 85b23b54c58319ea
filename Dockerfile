# The image in which environments are built: Debian and envferry, nothing else.
# docker build -t envferry:latest .
FROM debian:bookworm-slim
# libfaketime: `build --twice` builds the second time at another date.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates libfaketime python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
# The dependencies first, in a layer that changes to the code leave alone.
COPY pyproject.toml README.md LICENSE /src/
RUN mkdir -p /src/pipeline/envferry \
 && echo '__version__ = "0"' > /src/pipeline/envferry/__init__.py \
 && python3 -m venv /opt/envferry \
 && /opt/envferry/bin/pip install --no-cache-dir "/src[build,s3]" \
 && rm -r /src/pipeline
COPY pipeline /src/pipeline
RUN /opt/envferry/bin/pip install --no-cache-dir --no-deps --force-reinstall /src \
 && rm -r /src \
 && ln -s /opt/envferry/bin/envferry /usr/local/bin/envferry
ENTRYPOINT ["/opt/envferry/bin/envferry"]
