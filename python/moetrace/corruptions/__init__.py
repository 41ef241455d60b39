"""Corruptions: what makes the noised run of a case (section 3.2, equation 2)."""

from moetrace.corruptions.corruptor import Corruption, Corruptor
from moetrace.corruptions.embedding import Embedding, embedding_std
from moetrace.corruptions.noise import Noise, NoiseLike, NoiseScales, SubjectNoise, as_noise

__all__ = [
    "Corruption",
    "Corruptor",
    "Embedding",
    "Noise",
    "NoiseLike",
    "NoiseScales",
    "SubjectNoise",
    "as_noise",
    "embedding_std",
]
