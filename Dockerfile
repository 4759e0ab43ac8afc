# The commands of MGLD-VSR. For a GPU: --build-arg TORCH_INDEX=https://pypi.org/simple, whose torch is the CUDA build
FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /source
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
COPY constraints.txt ./
# torch first and alone, from the index of its build, so that nothing replaces it
RUN pip install --no-cache-dir -c constraints.txt --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple torch
COPY pyproject.toml setup.py README.md LICENSE main.py ./
COPY ldm ldm
COPY basicsr_deg basicsr_deg
COPY scripts scripts
COPY configs configs
COPY assets assets
RUN pip install --no-cache-dir -c constraints.txt '.[demo]'

FROM python:3.11-slim-bookworm
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 XDG_CACHE_HOME=/tmp/cache
RUN useradd --create-home --uid 1000 user
USER 1000
WORKDIR /clips
EXPOSE 7860
CMD ["vsr-upscale", "--help"]
