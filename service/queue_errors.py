"""Temporary home; moves to errors."""

from service.errors import InvalidRequest, NotReady, QueueFull


class QuotaExceeded(QueueFull):
    code = "quota_exceeded"


class QueueUnavailable(NotReady):
    code = "queue_unavailable"


class IdempotencyMismatch(InvalidRequest):
    code = "idempotency_mismatch"
