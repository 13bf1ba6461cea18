"""What can go wrong in the service, and the HTTP status that each of it has.

    BarError                     one line for a person; never a traceback, never the client's text
    ├── StartupError             the process cannot start: bad settings, no such model, port taken
    ├── EngineLost               the device is in a state that only a new process can leave
    └── ServiceError             answers a request, in the OpenAI error envelope
        ├── InvalidRequest       400  a value, or a field, that is refused
        ├── Unauthorized         401  no key, one that is not known, or one that has expired
        ├── Forbidden            403  whoever asks, it is not allowed
        ├── NotFound             404  no such route, model or generation
        ├── MethodNotAllowed     405  the route exists, with other methods
        ├── NotAcceptable        406  no representation that the Accept header asks for
        ├── BodyTooSlow          408  the body did not arrive in time
        ├── Gone                 410  the generation was cancelled, or its result has expired
        ├── BodyTooLarge         413  counted as received
        ├── UnsupportedMediaType 415  the body is declared as something that the route does not read
        ├── IdempotencyMismatch  422  the key stands for another body
        ├── QuotaExceeded        429  too many unfinished jobs of one caller
        ├── RateLimited          429  too many requests of one caller in a minute
        ├── QueueFull            429  with Retry-After from the queue's cost and the measured speed
        ├── ClientDisconnected   499  nobody is left to read the answer; seen in metrics only
        ├── GenerationFailed     500  the engine or an encoder failed; details are in the log
        ├── QueueUnavailable     503  the queue's server is away, or full
        ├── NotReady             503  weights are loading
        ├── Draining             503  the process is shutting down
        ├── WorkerLost           503  the worker ended before the job did
        └── DeadlineExceeded     504  timeout_s passed; the job is stopped

`STATUSES` is the one place where a class meets its status. 409 is not used, because common clients
retry it.
"""

from typing import Any


class BarError(Exception):
    """Root of the service's errors; `str()` of it is a message for a person."""


class StartupError(BarError):
    """The process cannot start; the message is the whole story."""


class EngineLost(BarError):
    """A worker cannot go on; it has logged why."""


class ServiceError(BarError):
    """An answer to a request. `param` names the field at fault, `code` the kind of fault."""

    code = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code or type(self).code
        self.retry_after_s = retry_after_s

    @property
    def status(self) -> int:
        return STATUSES[type(self)]

    @property
    def type(self) -> str:
        """Who is at fault, in the words that OpenAI's clients know."""
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def envelope(self) -> dict[str, dict[str, Any]]:
        """Return the body of the answer: `{"error": {message, type, param, code}}`."""
        return {
            "error": {
                "message": str(self),
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class InvalidRequest(ServiceError):
    code = "invalid_value"


class Unauthorized(ServiceError):
    code = "invalid_api_key"


class Forbidden(ServiceError):
    code = "forbidden"


class NotFound(ServiceError):
    code = "not_found"


class MethodNotAllowed(ServiceError):
    code = "method_not_allowed"


class NotAcceptable(ServiceError):
    code = "not_acceptable"


class BodyTooSlow(ServiceError):
    code = "body_too_slow"


class Gone(ServiceError):
    code = "gone"


class BodyTooLarge(ServiceError):
    code = "body_too_large"


class UnsupportedMediaType(ServiceError):
    code = "unsupported_media_type"


class IdempotencyMismatch(ServiceError):
    code = "idempotency_mismatch"


class QuotaExceeded(ServiceError):
    code = "quota_exceeded"


class RateLimited(ServiceError):
    code = "rate_limit_exceeded"


class QueueFull(ServiceError):
    code = "queue_full"


class ClientDisconnected(ServiceError):
    code = "client_disconnected"


class GenerationFailed(ServiceError):
    code = "generation_failed"


class QueueUnavailable(ServiceError):
    code = "queue_unavailable"


class NotReady(ServiceError):
    code = "not_ready"


class Draining(ServiceError):
    code = "draining"


class WorkerLost(ServiceError):
    code = "worker_lost"


class DeadlineExceeded(ServiceError):
    code = "deadline_exceeded"


STATUSES: dict[type[ServiceError], int] = {
    InvalidRequest: 400,
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    MethodNotAllowed: 405,
    NotAcceptable: 406,
    BodyTooSlow: 408,
    Gone: 410,
    BodyTooLarge: 413,
    UnsupportedMediaType: 415,
    IdempotencyMismatch: 422,
    QuotaExceeded: 429,
    RateLimited: 429,
    QueueFull: 429,
    ClientDisconnected: 499,
    GenerationFailed: 500,
    QueueUnavailable: 503,
    NotReady: 503,
    Draining: 503,
    WorkerLost: 503,
    DeadlineExceeded: 504,
}
