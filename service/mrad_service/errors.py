"""What only a server can get wrong. Codes are stable."""

from __future__ import annotations

from mrad.errors import MRADError


class ServiceError(MRADError):
    """Root of the service's own errors."""

    code = "service_error"


class InvalidRequestError(ServiceError):
    """A request that makes no sense; the message says which part."""

    code = "invalid_request"


class UnsupportedMediaError(ServiceError):
    """A body of a kind that is not read here."""

    code = "unsupported_media_type"


class BodyTooLargeError(ServiceError):
    """More bytes than the limit for a request or a file."""

    code = "body_too_large"

    @classmethod
    def of_file(cls, most: int) -> BodyTooLargeError:
        """Of one file: what its sender can do, and whom to ask."""
        return cls(
            f"the file has more than {most} bytes, the server's max_file_bytes: send it compressed, as PNG, "
            "or have that limit raised"
        )


class TooManyImagesError(ServiceError):
    """More images than the limit for a request."""

    code = "too_many_images"


class ResponseTooLargeError(ServiceError):
    """The maps of one answer would exceed the limit."""

    code = "response_too_large"


class UploadTimeoutError(ServiceError):
    """The body did not arrive in time."""

    code = "upload_timeout"


class AuthenticationError(ServiceError):
    """No key, or one that is not known."""

    code = "unauthenticated"


class ForbiddenError(ServiceError):
    """A known key without the scope."""

    code = "forbidden"


class CrossOriginError(ServiceError):
    """A page of another origin asked."""

    code = "cross_origin"


class QueueFullError(ServiceError):
    """More work than can be done in time; `retry_after` seconds from now there is likely room."""

    code = "queue_full"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(ServiceError):
    """The request was not done by its deadline; what was left of it was dropped."""

    code = "deadline_exceeded"


class ClientGoneError(ServiceError):
    """The client left; nobody reads this."""

    code = "client_gone"


class DrainingError(ServiceError):
    """The server is stopping."""

    code = "draining"


class DeviceMemoryError(ServiceError):
    """The device has no memory for even one image."""

    code = "device_out_of_memory"


class DeviceLostError(ServiceError):
    """The device fails for good; only a new process can use it again."""

    code = "device_lost"


class DeviceError(ServiceError):
    """The device failed; the log has the cause."""

    code = "device_failed"


class InternalError(ServiceError):
    """The program failed, as by a fault in a head; the log has the cause."""

    code = "internal_error"


class UnknownBankError(ServiceError):
    """No bank of that name is configured."""

    code = "unknown_bank"


class BankNotLoadedError(ServiceError):
    """The bank is configured but not in memory: activate it."""

    code = "bank_not_loaded"


class CalibratingError(ServiceError):
    """Another calibration of the bank runs, and was asked otherwise."""

    code = "calibrating"


class AuditError(ServiceError):
    """What is done cannot be written down, so it is not done."""

    code = "audit_unwritable"


class StorageFullError(ServiceError):
    """The disk or the folder for temporary files is full."""

    code = "storage_full"


class StorageError(ServiceError):
    """The disk or the folder for temporary files cannot be written."""

    code = "storage_failed"


class ReadOnlyError(ServiceError):
    """This server does not learn."""

    code = "read_only"


class AddressError(ServiceError):
    """The address to listen on is taken, or not this machine's."""

    code = "address_taken"


class NotReadyError(ServiceError):
    """A file without which the server would never be ready."""

    code = "not_ready"
