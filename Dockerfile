# An image for NVIDIA GPUs. It needs a driver of release 580 or newer (CUDA 13) and the NVIDIA
# Container Toolkit.
#
#   docker build -t reward-model --build-arg UID="$(id -u)" .
#   mkdir -p output ~/.cache/huggingface
#   docker run --rm -it --gpus all --shm-size 16g \
#       -v "$PWD/output:/home/trainer/reward-model/output" \
#       -v "$HOME/.cache/huggingface:/home/trainer/.cache/huggingface" \
#       reward-model bash training_scripts/opt/single_gpu/run_350m.sh
#
# --shm-size: processes exchange data in /dev/shm, NCCL's too; Docker's 64 MB are too few.

# The torch that requirements.txt brings, 2.13, is built for CUDA 13.0 and has its libraries, cuDNN
# and NCCL with it; an image with a torch of its own would only pin it a second time. What is missing
# is a compiler: DeepSpeed builds its operators (Adam on the CPU, file access for a device nvme) when
# they are first used. For those of a GPU, which an entry of --deepspeed_config can ask for, it wants
# the nvcc of torch's CUDA.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04

# libaio-dev is for states in files (device nvme in --deepspeed_config); git, for the commit that
# training_args.json names.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        build-essential git libaio-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Ubuntu's own Python takes no packages from pip.
ENV PATH=/opt/venv/bin:$PATH CUDA_HOME=/usr/local/cuda
COPY requirements.txt /tmp/requirements.txt
RUN python3 -m venv /opt/venv && pip install --no-cache-dir -r /tmp/requirements.txt

# With the number of the user who builds the image, files in mounted folders are theirs. Ubuntu's
# image has a user 1000 of its own, hence --non-unique.
ARG UID=1000
RUN useradd --non-unique --create-home --shell /bin/bash --uid "$UID" trainer
USER trainer
# Docker would make what is missing of these, on which folders are mounted, as root.
RUN mkdir -p /home/trainer/reward-model/output /home/trainer/.cache/huggingface
WORKDIR /home/trainer/reward-model
COPY --chown=trainer . .
CMD ["bash"]
