"""The Wan 2.2 S2V family for Tunesmith: video of a speaking person from a picture, a sound and a text."""

from .audio import AudioInjection, VideoTokens
from .block import WanS2VTransformerBlock
from .family import WanS2VFamily
from .model import WanS2VModel
from .pipeline import WanSpeechToVideoPipeline
from .plugin import WanS2V
from .registration import register
from .rotary import take_rotary
from .settings import WanS2VSettings
from .transformer import WanS2VTransformer3DModel

register()

__all__ = [
    "AudioInjection",
    "VideoTokens",
    "WanS2V",
    "WanS2VFamily",
    "WanS2VModel",
    "WanS2VSettings",
    "WanS2VTransformer3DModel",
    "WanS2VTransformerBlock",
    "WanSpeechToVideoPipeline",
    "register",
    "take_rotary",
]
