"""Corruptions: what makes the noised run of a case (section 3.2, equation 2)."""

from moetrace.corruptions.choice import CorruptionLike, as_corruption
from moetrace.corruptions.corruptor import Corruption, Corruptor
from moetrace.corruptions.embedding import Embedding, embedding_std
from moetrace.corruptions.noise import Noise, NoiseLike, NoiseScales, SubjectNoise, as_noise, as_subject_noise
from moetrace.corruptions.replaced import CorruptionFunction, MeanEmbedding, ZeroEmbedding
from moetrace.corruptions.swap import SwapSubject
from moetrace.corruptions.uniform import UniformNoise

__all__ = [
    "Corruption",
    "CorruptionFunction",
    "CorruptionLike",
    "Corruptor",
    "Embedding",
    "MeanEmbedding",
    "Noise",
    "NoiseLike",
    "NoiseScales",
    "SubjectNoise",
    "SwapSubject",
    "UniformNoise",
    "ZeroEmbedding",
    "as_corruption",
    "as_noise",
    "as_subject_noise",
    "embedding_std",
]
