# Pointsman for cloud GPUs: CUDA runtime, Python 3.11, the pinned dependencies, a user without privileges.
#
#   docker build -t pointsman .
#   docker run --rm --gpus all --shm-size=8g -v "$PWD/runs:/workspace/runs" pointsman train launch.nproc=8
#
# The base is pinned by tag; pin it by content as well with --build-arg DIGEST=sha256:... . CUDA 13.0 is what the PyPI
# build of the pinned torch is made for. Any Debian 12 or Ubuntu image serves as BASE (docs/launching.md has a CPU one).
ARG BASE=docker.io/nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04
ARG DIGEST=
FROM ${BASE}${DIGEST:+@${DIGEST}}

# gcc and the Python headers stay in the image: Triton and DeepSpeed compile small extensions when a run starts.
# Ubuntu has no released Python 3.11 of its own, hence the archive of Python builds there; Debian 12 has one.
RUN set -eu; \
    export DEBIAN_FRONTEND=noninteractive; \
    apt-get update; \
    if . /etc/os-release && [ "$ID" = ubuntu ]; then \
        apt-get install -y --no-install-recommends software-properties-common gpg-agent; \
        add-apt-repository -y ppa:deadsnakes/ppa; \
    fi; \
    apt-get install -y --no-install-recommends \
        python3.11 python3.11-dev python3.11-venv ca-certificates g++ gcc libc6-dev make openssh-client pdsh; \
    rm -rf /var/lib/apt/lists/*

RUN python3.11 -m venv /opt/pointsman
ENV PATH=/opt/pointsman/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

# The dependencies form a layer of their own, which a change of Pointsman's code does not rebuild. torch comes first,
# because DeepSpeed's setup asks it for its version.
WORKDIR /opt/pointsman/src
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN pip install -c constraints.txt torch setuptools wheel \
    && python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' > dependencies.txt \
    && pip install -c constraints.txt -r dependencies.txt tensorboard

COPY conf ./conf
COPY data ./data
COPY launch ./launch
COPY measure ./measure
COPY model ./model
COPY parallel ./parallel
COPY pointsman ./pointsman
COPY trainer ./trainer
RUN pip install --no-deps . && rm -rf build

# Ubuntu images come with a user 1000 of their own.
RUN if id ubuntu >/dev/null 2>&1; then userdel --remove ubuntu; fi \
    && useradd --create-home --uid 1000 --shell /bin/bash pointsman \
    && mkdir -p /workspace && chown pointsman /workspace
USER pointsman
WORKDIR /workspace
ENTRYPOINT ["pointsman"]
CMD ["--help"]
