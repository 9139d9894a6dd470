"""Distillation: the frozen teacher, the terms, the discriminator, and the step's forward passes.

Import from the files; nothing here knows the engine, so each works in a training loop of your own.
"""
