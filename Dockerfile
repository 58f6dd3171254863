# A small image of the service, running as a user without rights.
FROM python:3.13-slim AS build
WORKDIR /src
COPY requirements.lock pyproject.toml README.md LICENSE ./
COPY featurestore featurestore
COPY api api
COPY ingest ingest
RUN python -m venv /opt/featurestore \
    && sed '/--hash/d; s/ \\$//' requirements.lock > versions.txt \
    && /opt/featurestore/bin/pip install --no-cache-dir --constraint versions.txt setuptools \
    && /opt/featurestore/bin/pip install --no-cache-dir --constraint versions.txt --no-build-isolation ".[postgres,s3,iceberg,kafka]"

FROM python:3.13-slim
COPY --from=build /opt/featurestore /opt/featurestore
RUN useradd --system --uid 10001 --home-dir /data featurestore && install -d -o featurestore /data
USER featurestore
ENV PATH=/opt/featurestore/bin:$PATH FEATURESTORE_HOME=/data
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/ready', timeout=2)"]
# On an address that others reach it serves signed requests only: set FEATURESTORE_ADMIN_ACCESS_KEY_ID and
# FEATURESTORE_ADMIN_SECRET_ACCESS_KEY, or create a key in the volume first (`docker run -v ... featurestore keys create NAME`).
# FEATURESTORE_WORKERS is how many processes answer requests; give it time to stop (`docker stop -t 60`).
ENTRYPOINT ["featurestore"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8080"]
