# Two images from one file: `service` (the API, without torch) and `worker` (Celery and torch).
FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 \
    VIRTUAL_ENV=/opt/eckart PATH=/opt/eckart/bin:$PATH \
    HOME=/tmp ECKART_DATA_DIR=/data \
    PYTHONPATH=/opt/eckart/lib/python3.11/site-packages/eckart/_server
# The same ids in both images, because they share the data volume, which takes over the owner of /data.
RUN groupadd --gid 10001 eckart \
 && useradd --uid 10001 --gid eckart --no-create-home --home-dir /tmp --shell /usr/sbin/nologin eckart \
 && install --directory --owner eckart --group eckart --mode 750 /data /secrets \
 && python -m venv "$VIRTUAL_ENV"
WORKDIR /opt/eckart/build
# The dependencies alone first: a change of the code does not install them again.
COPY pyproject.toml constraints.txt ./
COPY locks locks
COPY tools/install_torch.py tools/
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
[print(*project['dependencies'], *project['optional-dependencies'][extra], sep='\n', file=open(extra + '.txt', 'w')) \
 for extra in ('service', 'worker')]"
# A mirror that builds its own wheels has other hashes. `prefer`: then the versions alone decide, and a line says so;
# `require`: then the build fails (docs/decisions/0013-hashes-where-images-install.md).
ARG HASHES=prefer
RUN printf '%s\n' '#!/bin/sh' \
 'pip install --no-deps --require-hashes -r "locks/$1.txt" && exit' \
 'test "$HASHES" = prefer || exit 1' \
 'echo "WARNING: not the hashes of locks/$1.txt; installing by version alone" >&2' \
 'shift; exec pip install -c constraints.txt "$@"' > install && chmod +x install

FROM base AS code
RUN ./install build setuptools
COPY . .
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheel .

FROM base AS service
RUN ./install service -r service.txt
COPY --from=code /wheel /wheel
RUN pip install --no-deps /wheel/*.whl && pip check
USER 10001:10001
WORKDIR /data
ENV ECKART_HOST=0.0.0.0 ECKART_PORT=8000
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
  CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"ECKART_PORT\"]}/livez')"]
CMD ["python", "-P", "-m", "service"]

FROM base AS worker
# Where torch comes from: a backend whose index uv knows (cpu, cu130, …), the URL of an index, or `pip` for what pip finds.
# A wheel that the base image brings along (PIP_FIND_LINKS) goes before the CPU builds of torch's index.
ARG TORCH_INDEX=cpu
RUN ./install build setuptools uv && python tools/install_torch.py && pip uninstall --quiet --yes uv
RUN ./install worker -r worker.txt
COPY --from=code /wheel /wheel
RUN pip install --no-deps /wheel/*.whl && pip check
USER 10001:10001
WORKDIR /data
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["python", "-P", "-m", "worker.health"]
CMD ["python", "-P", "-m", "worker"]
