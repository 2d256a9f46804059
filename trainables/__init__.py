"""A small training library for vision transformers and their baselines.

It depends on no Ray, no sweep and no tracker: a `TrainConfig` goes in, `(Epoch, State)` pairs come out.
"""
