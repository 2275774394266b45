"""Curves over radius and steps."""

from clead.protocols.robustness import attack_all
from clead.protocols.sweeps import RADII, STEPS, eps_cases, steps_cases, sweep


def test_curves_cannot_rise_and_end_no_higher_than_the_attack_alone(network):
    for cases in (eps_cases("linf", (0.2, 0.05, 0.1)), steps_cases("linf", 0.12, (0, 1, 5, 20))):
        rows = list(sweep(network, cases))
        accuracies = [row["accuracy"] for row in rows]
        assert accuracies == sorted(accuracies, reverse=True) and accuracies[0] > accuracies[-1]
        alone = attack_all(network, *cases[-1]).robust.double().mean()
        assert accuracies[-1] <= float(alone)
        assert all(row["flags"] == ["sweep"] for row in rows)


def test_what_is_swept():
    assert [round(eps * 255) for _, eps in eps_cases("linf")] == [1, 2, 4, 6, 8, 12, 16, 24, 32] and len(RADII) == 9
    cases = steps_cases("l2", 0.5)
    assert [(spec.name, spec.steps, spec.norm, eps) for spec, eps in cases] == [
        (f"pgd{steps}", steps, "l2", 0.5) for steps in STEPS
    ]
    assert {spec.relative_step for spec, _ in cases} == {0.25}
