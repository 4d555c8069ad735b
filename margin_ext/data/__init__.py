"""Samples to measure and to train on."""
