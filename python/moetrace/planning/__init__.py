"""What a trace will cost, before it costs it.

>>> mt.plan("Qwen/Qwen3-30B-A3B-Base", cases, what="protocol")

:mod:`blueprint` finds a model's shape without its weights, :mod:`sizes` counts its parameters, :mod:`stages`
says which traces there are, :mod:`work` lays them out with the engine's own code, :mod:`clock` times a
micro-batch, :mod:`speed` scales it, :mod:`memory` adds up what is resident.
"""
