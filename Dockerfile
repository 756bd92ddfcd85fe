# The operator's image: the one that would be published, and the one that tests run.
# Wheels are made outside (make wheels), so that the build itself fetches nothing but Python for a base without it.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS python
RUN command -v python3 >/dev/null && python3 -c 'import ensurepip' || \
    { apt-get update && apt-get install -y --no-install-recommends python3 python3-venv ca-certificates && rm -rf /var/lib/apt/lists/*; }

# A layer of its own, and the bulk: a change of ours does not change it, so nodes fetch it once.
# pip stands beside it and never in it. Compiled files are kept: on a read-only root nothing could be compiled later, and
# prepare must start at once. Only those of the client's models go: a third of the image, and hardly any is ever imported.
FROM python AS dependencies
COPY build/wheels/dependencies /wheels
RUN python3 -m venv --without-pip /opt/pullthrough \
 && python3 -m venv /opt/pip \
 && /opt/pip/bin/pip --python=/opt/pullthrough/bin/python3 install --no-cache-dir --no-index --find-links=/wheels \
      --require-hashes -r /wheels/runtime.txt \
 && find /opt/pullthrough/lib -path '*/kubernetes/*' -path '*models*' -name '*.pyc' -delete

FROM dependencies AS own
COPY build/wheels/own /wheel
RUN /opt/pip/bin/pip --python=/opt/pullthrough/bin/python3 install --no-cache-dir --no-index --no-deps --root=/own \
      /wheel/pullthrough-*.whl

FROM python
LABEL org.opencontainers.image.title="pullthrough" \
      org.opencontainers.image.description="Kubernetes operator for pull-through caches of container registries" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=dependencies /opt/pullthrough /opt/pullthrough
COPY --from=own /own /
ENV PATH=/opt/pullthrough/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
ENTRYPOINT ["pullthrough"]
CMD ["--help"]
