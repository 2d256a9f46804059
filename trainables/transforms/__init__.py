"""Augmentation and corruption of images, and the pipelines that make batches."""
