"""A small training library for vision transformers and their baselines.

It knows no Ray, no sweeps and no tracker: a `TrainConfig` goes in, `(Epoch, State)` pairs come out.
"""
