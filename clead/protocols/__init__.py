"""Evaluations of a trained encoder."""

from clead.protocols.attack_suite import attack_suite, parse_attack
from clead.protocols.encode import encode
from clead.protocols.finetune import finetune
from clead.protocols.knn import knn, knn_predict
from clead.protocols.logistic_regression import logistic_regression

__all__ = ["attack_suite", "encode", "finetune", "knn", "knn_predict", "logistic_regression", "parse_attack"]
