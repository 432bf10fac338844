"""Every error that the project raises on purpose. `code` is stable: clients may match on it."""

from __future__ import annotations


class MRADError(Exception):
    """Root of the tree. The message says what is wrong and what to do about it."""

    code = "mrad_error"


class MissingPackageError(MRADError):
    """A package that mrad needs is not installed, or is broken; no picture is to blame."""

    code = "missing_package"

    @classmethod
    def of(cls, error: ImportError, doing: str) -> MissingPackageError:
        """`doing`: what could not be done, as `a.png cannot be read`."""
        module = (error.name or "").partition(".")[0]
        extras = {"PIL": "pillow", "faiss": "mrad[cpu]' or 'mrad[gpu]", "ray": "mrad[ray]"}
        package = extras.get(module, module)
        remedy = f": pip install '{package}'" if package else ""
        return cls(f"{doing}: {module or 'a package'} is missing or broken ({error}){remedy}")


class ImageError(MRADError):
    """An input that is not a usable image."""

    code = "invalid_image"


class ImageTooLargeError(ImageError):
    """More pixels than the configured limit; refused before decoding."""

    code = "image_too_large"


class LayoutError(ImageError):
    """An image on which a region of interest or a named part has no place."""

    code = "layout_mismatch"


class DoubtfulImageError(ImageError):
    """A picture with warnings, where input is strict."""

    code = "doubtful_image"


class MaskError(MRADError):
    """A mask that does not belong to its image or holds no usable region."""

    code = "invalid_mask"


class EncoderError(MRADError):
    """An encoder that cannot be built or cannot compute both paths of the method."""

    code = "encoder_error"


class ForkedProcessError(MRADError):
    """A process that was forked after the detector had been loaded; its threads are missing."""

    code = "forked_process"


class WeightsNotFoundError(EncoderError):
    """Weights that are neither on disk nor reachable."""

    code = "weights_not_found"


class UnsupportedEncoderError(EncoderError):
    """A tower for which the V-V path is not defined."""

    code = "unsupported_encoder"


class BankError(MRADError):
    """A memory bank that cannot be read, written or used."""

    code = "bank_error"


class BankNotFoundError(BankError):
    """No bank at that path."""

    code = "bank_not_found"


class BankCorruptError(BankError):
    """A file of the bank is missing, truncated or fails its digest."""

    code = "bank_corrupt"


class BankVersionError(BankError):
    """A bank written by a newer version than this reader knows."""

    code = "bank_version"


class BankWriteError(BankError):
    """A bank cannot be written: the disk is full, or the place is not writable."""

    code = "bank_unwritable"


class EncoderMismatchError(BankError):
    """The bank was built by another encoder; the message names both."""

    code = "encoder_mismatch"


class EmptyLevelError(BankError):
    """The image or the patch level holds no key."""

    code = "empty_level"


class OneClassError(BankError):
    """A level holds keys of one class only: every probability would be 0 or 1."""

    code = "one_class_memory"


class NoGoodPartsError(BankError):
    """A memory without good images, or without their patches: `nn` has nothing to compare with."""

    code = "no_good_parts"


class UnknownObjectError(BankError):
    """A product of which the memory holds no image; the message names those it does."""

    code = "unknown_object"


class MergeError(BankError):
    """Banks that cannot be joined, though one encoder built them; the message says why."""

    code = "banks_differ"


class DimensionError(BankError):
    """Keys or queries of the wrong width."""

    code = "dimension_mismatch"


class NonFiniteError(MRADError):
    """NaN or infinity in features, keys or scores."""

    code = "non_finite"


class BankLockedError(BankError):
    """Another process is the writer of this memory; the message names it."""

    code = "bank_locked"


class BaseChangedError(BankError):
    """The bank folder was rebuilt under a memory that has learned since."""

    code = "bank_rebuilt"


class LogCorruptError(BankCorruptError):
    """What a memory learned is damaged; the message says where, and names the repair."""

    code = "log_corrupt"


class LogWriteError(BankError):
    """What a memory learns cannot be written: nothing was added."""

    code = "log_unwritable"

    def __init__(self, message: str, *, final: bool = False) -> None:
        """`final`: nobody knows what the disk holds now, so nothing more is taken until a restart."""
        super().__init__(message)
        self.final = final


class HeadError(MRADError):
    """A head that is unknown or cannot be built."""

    code = "head_error"


class CheckpointError(HeadError):
    """A head's checkpoint is missing an entry, has a wrong shape, or belongs to another encoder."""

    code = "invalid_checkpoint"


class DataError(MRADError):
    """A dataset folder or manifest that cannot be understood."""

    code = "invalid_data"


class CalibrationError(MRADError):
    """A threshold or probability was asked for that the bank does not hold or cannot give."""

    code = "calibration_error"
