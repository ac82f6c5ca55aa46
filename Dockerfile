# One image for every process of the Procfile; compose.yaml or an orchestrator names the command.
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONPATH=/app
WORKDIR /app
COPY requirements.lock .
RUN pip install --no-cache-dir --require-hashes --requirement requirements.lock
COPY . .

RUN useradd --system --no-create-home ainfera
USER ainfera
EXPOSE 8080
CMD ["python", "-m", "ingress"]
