# Runs the two commands of the README:
#   docker build -t margin_ext . && docker run --rm margin_ext make demo
#   docker run --rm margin_ext make test
FROM python:3.12-slim

RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ git make \
 && rm -rf /var/lib/apt/lists/*

# Further arguments for pip, such as an index with CPU builds of torch:
#   docker build --build-arg PIP_FLAGS="--extra-index-url URL" -t margin_ext .
ARG PIP_FLAGS=""
ENV PIP_FLAGS=${PIP_FLAGS} PIP_NO_CACHE_DIR=1

WORKDIR /margin_ext
COPY . .
# Both environments are made in the image, so that a run downloads nothing.
RUN make .venv/installed-demo .venv/installed-test

CMD ["make", "demo"]
