# An image with the command alignver:
#   docker build -t alignver .
#   docker run --rm -v "$PWD":/data alignver check model net.py:build --data train.npz --loss cross_entropy
# For CUDA: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126, and docker run --gpus all.
FROM python:3.12-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=torch,proof,plots
COPY . /src
RUN pip install --no-cache-dir "$(grep '^torch==' /src/constraints.txt)" --index-url "$TORCH_INDEX"
RUN pip install --no-cache-dir -c /src/constraints.txt "/src[$EXTRAS]"
RUN rm -rf /src && alignver --version
WORKDIR /data
ENTRYPOINT ["alignver"]
CMD ["--help"]
