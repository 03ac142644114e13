# The trainer image: python -m trainer, and what it needs. The layers that change least come first.
#
# BASE_IMAGE: the official TensorFlow image, or any Debian or Ubuntu image with Python 3.11 to 3.13 and pip.
# TENSORFLOW: tensorflow-cpu, or tensorflow[and-cuda] for GPUs.
ARG BASE_IMAGE=tensorflow/tensorflow:2.21.0
FROM ${BASE_IMAGE}

# Debian's pip installs beside Debian's own packages only when told so.
ENV PIP_NO_CACHE_DIR=1 PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore

# The official image holds the package `tensorflow`, which is built for CPU and GPU (assumed from its 616 MB, compressed;
# tensorflow-cpu has half of that): tensorflow-cpu would overwrite its files, tensorflow[and-cuda] adds NVIDIA's libraries.
ARG TENSORFLOW=tensorflow-cpu
RUN if [ "$TENSORFLOW" = tensorflow-cpu ] && python3 -m pip show --quiet tensorflow 2>/dev/null; then \
      echo "the base image brings TensorFlow"; \
    else python3 -m pip install "$TENSORFLOW>=2.21,<2.22"; fi

WORKDIR /app
COPY trainer/requirements.txt trainer/
RUN python3 -m pip install -r trainer/requirements.txt

# The numbers are arbitrary, and outside of what a VM gives its people.
RUN groupadd --gid 10001 trainer && useradd --uid 10001 --gid 10001 --create-home --shell /usr/sbin/nologin trainer
# Where checkpoints and data sets go without a mount, too.
RUN install -d -o trainer -g trainer /app/Saved_Model /data

COPY trainer trainer
RUN python3 -m compileall -q --invalidation-mode unchecked-hash trainer

ENV PYTHONUNBUFFERED=1 CHECKPOINT_DIR=/app/Saved_Model TFDS_DATA_DIR=/data
# Until the first step there is no progress: importing TensorFlow, reading the data, compiling.
HEALTHCHECK --interval=30s --timeout=10s --start-period=10m CMD ["python3", "-m", "trainer.health"]
# Exec form, so that SIGTERM reaches the trainer, which saves. It is its own process 1, or a child of docker's --init.
ENTRYPOINT ["sh", "/app/trainer/entrypoint.sh", "python3", "-m", "trainer"]

ARG BASE_IMAGE
ARG VERSION=
LABEL org.opencontainers.image.title="cloudtrain trainer" \
      org.opencontainers.image.description="Trains an image classifier; saves on SIGTERM, resumes at the exact step." \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.opencontainers.image.version="${VERSION}"
