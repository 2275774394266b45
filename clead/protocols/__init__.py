"""Evaluations of a trained encoder."""

from clead.protocols.catalogue import find_attack, find_attacks
from clead.protocols.encode import encode
from clead.protocols.finetune import fine_tuning
from clead.protocols.knn import knn, knn_predict
from clead.protocols.logistic_regression import logistic_regression
from clead.protocols.robustness import attack_all, robustness
from clead.protocols.subject import Classifier, Subject

__all__ = [
    "Classifier",
    "Subject",
    "attack_all",
    "encode",
    "find_attack",
    "find_attacks",
    "fine_tuning",
    "knn",
    "knn_predict",
    "logistic_regression",
    "robustness",
]
