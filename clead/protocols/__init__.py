"""Evaluations of a trained encoder."""

from clead.protocols.attack_suite import attack_suite, parse_attack
from clead.protocols.linear_eval import linear_eval

__all__ = ["attack_suite", "linear_eval", "parse_attack"]
