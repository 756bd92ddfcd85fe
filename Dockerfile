# The operator's image: the one that would be published, and the one that tests run.
# Wheels are made outside (make wheels), so that the build itself fetches nothing but Python for a base without it.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS python
RUN command -v python3 >/dev/null && python3 -c 'import ensurepip' || \
    { apt-get update && apt-get install -y --no-install-recommends python3 python3-venv ca-certificates && rm -rf /var/lib/apt/lists/*; }

FROM python AS build
COPY build/wheels /wheels
# Compiled files are kept: on a read-only root nothing could be compiled later, and prepare must start at once.
RUN python3 -m venv /opt/pullthrough \
 && /opt/pullthrough/bin/pip install --no-cache-dir --no-index --find-links=/wheels --require-hashes -r /wheels/runtime.txt \
 && /opt/pullthrough/bin/pip install --no-cache-dir --no-index --no-deps /wheels/pullthrough-*.whl \
 && /opt/pullthrough/bin/python -m compileall -q /opt/pullthrough/lib/python3*/site-packages/pullthrough \
 && /opt/pullthrough/bin/pip uninstall -y -q pip setuptools \
 && find /opt/pullthrough/lib -path '*/kubernetes/*' -name '*.pyc' -path '*models*' -delete

FROM python
LABEL org.opencontainers.image.title="pullthrough" \
      org.opencontainers.image.description="Kubernetes operator for pull-through caches of container registries" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/pullthrough /opt/pullthrough
ENV PATH=/opt/pullthrough/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
ENTRYPOINT ["pullthrough"]
CMD ["--help"]
