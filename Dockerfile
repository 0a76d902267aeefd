# ctflow with its embedded checkpoint.
#   docker build -t ctflow --build-arg TORCH_INDEX=<index of CPU wheels> .    processor alone
#   docker build -t ctflow:cuda .                                             CUDA: the wheels of the default index bring it
#   docker run --rm -v "$PWD/out:/data" ctflow generate --report "Large right pleural effusion." --output x.nii.gz
ARG BASE=python:3.11-slim
FROM ${BASE}

ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /opt/ctflow
# torch first: its layer stays when the sources change.
RUN pip install ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} "torch>=2.11"
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY ctflow ctflow
COPY data_prep data_prep
COPY configs configs
COPY checkpoints checkpoints
RUN pip install . && rm -rf /opt/ctflow/*

RUN useradd --create-home --uid 1000 user && mkdir /data && chown user /data
USER user
ENV MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /data
ENTRYPOINT ["ctflow"]
CMD ["--help"]
