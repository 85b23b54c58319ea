# The image in which environments are built: Debian and envferry, nothing else.
# docker build -t envferry:latest .
FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml README.md LICENSE /src/
COPY pipeline /src/pipeline
RUN python3 -m venv /opt/envferry \
 && /opt/envferry/bin/pip install --no-cache-dir "/src[build,s3]" \
 && rm -rf /src \
 && ln -s /opt/envferry/bin/envferry /usr/local/bin/envferry
ENTRYPOINT ["/opt/envferry/bin/envferry"]
