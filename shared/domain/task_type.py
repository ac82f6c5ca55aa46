"""placeholder"""

from shared.domain.inference import InferenceRequest


def classify(request: InferenceRequest) -> str:
    return request.hint.task_type or "general"
