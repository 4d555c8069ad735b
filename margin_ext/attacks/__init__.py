"""Attacks: searches for adversarial examples inside a ball of a given radius."""

from __future__ import annotations

from margin_ext.attacks.attack import (
    ATTACKS,
    Attack,
    AttackResult,
    register_attack,
    resolve_attacks,
)
from margin_ext.attacks.autoattack import AutoAttack
from margin_ext.attacks.nearest import Nearest
from margin_ext.attacks.pgd import PGD, AttackLoss

__all__ = [
    "ATTACKS",
    "PGD",
    "Attack",
    "AttackLoss",
    "AttackResult",
    "AutoAttack",
    "Nearest",
    "register_attack",
    "resolve_attacks",
]
