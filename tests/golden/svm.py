#!/usr/bin/env python3
"""Writes svm.safetensors: scikit-learn's LinearSVC and average precision on fixed data (README.md).

usage: tests/golden/svm.py     (NumPy and scikit-learn 1.2 or newer)
"""
import pathlib

import numpy as np
import sklearn
from sklearn.svm import LinearSVC

import safetensors

CLASSES, DIM, TRAIN, TEST, COST, WEIGHT = 3, 12, 90, 60, 0.5, 2


def envelope_ap(scores, positive):
    """Area under max-to-the-right precision over recall, from all thresholds."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    precision = hits / np.arange(1, len(scores) + 1)
    recall = hits / positive.sum()
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(np.concatenate([[0.0], recall])) * envelope))


def rows(random, centres, labels):
    x = centres[labels] + 2.5 * random.standard_normal((len(labels), DIM))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float32)


def main():
    random = np.random.default_rng(7)
    centres = random.standard_normal((CLASSES, DIM))
    train_labels, test_labels = np.arange(TRAIN) % CLASSES, np.arange(TEST) % CLASSES
    train, test = rows(random, centres, train_labels), rows(random, centres, test_labels)
    weights, intercepts, aps, decisions = [], [], [], []
    for c in range(CLASSES):
        y = np.where(train_labels == c, 1, -1)
        # The optimum of eval_svm_voc.py's problem; its dual solver stops at 1e-4 of it, this one much nearer.
        svm = LinearSVC(C=COST, class_weight={1: WEIGHT, -1: 1}, intercept_scaling=1.0, penalty="l2",
                        loss="squared_hinge", tol=1e-12, dual=False, max_iter=100000)
        svm.fit(train.astype(np.float64), y)
        decision = svm.decision_function(test.astype(np.float64))
        weights.append(svm.coef_[0])
        intercepts.append(svm.intercept_[0])
        decisions.append(decision)
        aps.append(100 * envelope_ap(decision, test_labels == c))
    top1 = 100 * np.mean(np.argmax(np.stack(decisions, 1), 1) == test_labels)
    f32 = lambda x: np.asarray(x, np.float32)
    safetensors.save(pathlib.Path(__file__).parent / "svm.safetensors",
                     {"train": train, "test": test, "train_labels": train_labels.astype(np.int32),
                      "test_labels": test_labels.astype(np.int32), "weights": f32(weights), "intercept": f32(intercepts),
                      "ap": f32(aps), "map": f32([np.mean(aps)]), "top1": f32([top1])},
                     {"sklearn": sklearn.__version__, "cost": COST, "positive_weight": WEIGHT})


if __name__ == "__main__":
    main()
