"""Video and audio datasets for Tunesmith, decoded with PyAV."""

from .kinds import AudioKind, VideoKind
from .plugin import Audio, Video
from .tables import AudioTable, VideoTable

__all__ = ["Audio", "AudioKind", "AudioTable", "Video", "VideoKind", "VideoTable"]
