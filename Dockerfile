# An image with the command alignver:
#   docker build -t alignver .
#   docker run --rm -v "$PWD":/data alignver check model net.py:build --data train.npz --loss cross_entropy
# torch is pip's default build, for CUDA (docker run --gpus all). A smaller one, for the CPU: --build-arg TORCH_INDEX=URL
# with the package index that pytorch.org names for it.
FROM python:3.12-slim
ARG TORCH_INDEX=
ARG EXTRAS=torch,proof,plots
COPY . /src
RUN pip install --no-cache-dir "$(grep '^torch==' /src/constraints.txt)" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
RUN pip install --no-cache-dir -c /src/constraints.txt "/src[$EXTRAS]"
RUN rm -rf /src && alignver --version
WORKDIR /data
ENTRYPOINT ["alignver"]
CMD ["--help"]
