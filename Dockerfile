# One image for every process of the Procfile; compose.yaml or an orchestrator names the command.
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONPATH=/app
WORKDIR /app
COPY requirements.lock .
RUN pip install --no-cache-dir --require-hashes --requirement requirements.lock

# Named one by one, so that no file that happens to lie about (.env, say) gets into an image.
COPY ingress ingress
COPY workers workers
COPY shared shared
COPY migrations migrations
# compiled here, because at run time the file system may be read-only
RUN python -m compileall -q ingress workers shared migrations

# a number, so that an orchestrator can see that it is not root
# and a folder of its own for checkpoints, which a volume that is mounted there takes its owner from
RUN useradd --system --no-create-home --uid 10001 ainfera && install -d -o 10001 /audit
USER 10001
EXPOSE 8080
CMD ["python", "-m", "ingress"]
