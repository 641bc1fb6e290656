"""The one tree of errors.

    RtMmdfError
    +-- ConfigurationError      a TOML file, a setting or a command-line value is wrong
    +-- StreamError             what the Lab Streaming Layer offers cannot be used
    |   +-- StreamNotFound      no stream of that description
    |   +-- StreamAmbiguous     more than one stream of that description
    |   +-- StreamDescriptionError   units, types, names or rates that cannot be interpreted
    +-- RecordingError          a recording cannot be read or does not hold what was asked for
    +-- HeadModelError          a head model cannot be built, read, or does not cover the channels
    +-- NoiseCovarianceError    a noise covariance of the wrong channels or rank
    +-- SolverError             a solver cannot be prepared
    |   +-- ArtefactError       a trained model is missing, damaged, of another version, or does not fit
    +-- TrainingError           a network cannot be trained, or its training be taken up again
    +-- WorkerFailed            a worker thread died; its own error is the cause
    +-- SinkError               an output cannot be written
    +-- ViewError               the brain view cannot draw

Every message says where, what was seen, what was expected and what to do.
"""


class RtMmdfError(Exception):
    """Base of all errors that rt_mmdf raises on purpose."""


class ConfigurationError(RtMmdfError):
    """A TOML file, a setting or a command-line value is wrong."""


class StreamError(RtMmdfError):
    """What the Lab Streaming Layer offers cannot be used."""


class StreamNotFound(StreamError):
    """No stream fits the description."""


class StreamAmbiguous(StreamError):
    """More than one stream fits the description."""


class StreamDescriptionError(StreamError):
    """Units, types, names or rates of a stream cannot be interpreted."""


class RecordingError(RtMmdfError):
    """A recording cannot be read or does not hold what was asked for."""


class HeadModelError(RtMmdfError):
    """A head model cannot be built, read, or does not cover the channels."""


class NoiseCovarianceError(RtMmdfError):
    """A noise covariance has the wrong channels or rank."""


class SolverError(RtMmdfError):
    """A solver cannot be prepared."""


class ArtefactError(SolverError):
    """A trained model is missing, damaged, of another version, or does not fit the head and the channels."""


class TrainingError(RtMmdfError):
    """A network cannot be trained, or its training be taken up again."""


class WorkerFailed(RtMmdfError):
    """A worker thread died; the error that killed it is the ``__cause__``."""


class SinkError(RtMmdfError):
    """An output cannot be written."""


class ViewError(RtMmdfError):
    """The brain view cannot draw: no display, or an OpenGL that does not do what is needed."""
