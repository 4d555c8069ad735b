"""Adversarial attacks: projected gradient descent and the minimum distance."""
