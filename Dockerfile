# For a CPU:  docker build -t lors_det .
# For GPUs:   docker build -t lors_det --build-arg TORCH=cu128 .
FROM python:3.11-slim
# Which build of torch: cpu, cu126, cu128, ... (uv's --torch-backend).
ARG TORCH=cpu
WORKDIR /lors_det
COPY . .
# One OpenCV, headless: see requirements/opencv-python/pyproject.toml.
RUN pip install --no-cache-dir uv \
    && uv pip install --system --no-cache --torch-backend=$TORCH \
       ./requirements/opencv-python '.[onedl]'
