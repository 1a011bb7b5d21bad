"""What the evidence measures and says: honest statistics, tables, targets, pictures, the page and the README."""

import json
import math
import re
from statistics import mean, stdev

import claims
import numpy as np
import pytest
import summarise
import torch
from claims import claims_table
from forest import kinds_forest
from kinds import kinds_table, rivals_table
from measures import expected_calibration_error, nc1
from methods import METHODS, settings
from pairs import compare, holm
from plan import ABLATIONS_OF, CLAIM_TASKS, DEFAULT, FRESH_SEEDS, FRESH_TASKS, GPU_TASKS, METHODS_OF, tuning_seeds
from runs import HERE, planned, read_results, read_tuned
from scipy import stats
from summarise import ROOT, current, fresh_results, page, readme_part, readme_with
from tables import gain_cell, tuned_table
from tune import best, grid_of


def test_expected_calibration_error_of_a_worked_example():
    probabilities = torch.tensor([[0.95, 0.05], [0.94, 0.06], [0.4, 0.6], [0.3, 0.7]])
    labels = torch.tensor([0, 1, 1, 1])
    # bins of 1/15: (0.933, 1] holds 0.95 and 0.94, one of them right; 0.6 and 0.7 stand alone, both right
    expected = 0.5 * abs(0.5 - 0.945) + 0.25 * 0.4 + 0.25 * 0.3
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected)


def test_nc1_is_the_papers():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(30, 5)), np.repeat([0, 1, 2], 10)
    means = np.stack([features[labels == c].mean(0) for c in range(3)])
    within = sum(np.outer(x - means[c], x - means[c]) for x, c in zip(features, labels, strict=True)) / 30
    between = sum(np.outer(m - means.mean(0), m - means.mean(0)) for m in means) / 3
    expected = np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / 3
    assert nc1(torch.from_numpy(features), torch.from_numpy(labels)) == pytest.approx(expected)


def test_paired_differences_have_t_intervals():
    ours, theirs = [0.92, 0.95, 0.91, 0.94], [0.90, 0.94, 0.91, 0.92]
    result = compare(dict(enumerate(ours)), dict(enumerate(theirs)))
    differences = [100 * (a - b) for a, b in zip(ours, theirs, strict=True)]
    half = stats.t.ppf(0.975, 3) * stdev(differences) / math.sqrt(4)
    assert (result.gain, result.low, result.high) == pytest.approx(
        (mean(differences), mean(differences) - half, mean(differences) + half)
    )
    assert result.p == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
    assert (result.wins, result.ties, result.losses) == (3, 1, 0)


def test_one_seed_has_no_interval():
    assert gain_cell(compare({0: 0.5}, {0: 0.25})) == "+25.00"


def test_what_the_page_reports_is_in_the_plan_and_at_what_tuning_found_best():
    """So `make evidence` repeats the page, and nothing else."""
    tuning, tuned = read_results(HERE / "tuning.jsonl"), read_tuned()
    for task, methods in current(HERE / "results.jsonl").items():
        plan = METHODS_OF.get(task, DEFAULT)
        assert set(methods) <= {*plan, *ABLATIONS_OF.get(task, [])}
        tuned_ones = [
            name
            for name in plan
            if name == "trainer" or (name in METHODS and METHODS[name].knob is not None and task not in GPU_TASKS)
        ]
        for method in tuned_ones:
            grid = grid_of(task, method)
            runs = planned([task], [method], tuning_seeds(task, method), "validation", grid)
            assert tuned[task][method] == best([tuning[run.key] for run in runs], grid)


def test_the_fresh_runs_are_those_of_the_plan_at_todays_settings_and_on_seeds_that_nothing_else_has():
    plan = {run.key for run in planned(FRESH_TASKS, DEFAULT, FRESH_SEEDS, "test")}
    assert plan <= set(read_results(HERE / "fresh.jsonl"))
    others = [read_results(HERE / f"{name}.jsonl").values() for name in ("results", "tuning", "tried")]
    assert not {row["seed"] for rows in others for row in rows} & set(FRESH_SEEDS)


def test_only_seeds_of_both_are_compared():
    result = compare({0: 0.5, 1: 0.6, 2: 0.9}, {0: 0.4, 1: 0.6, 3: 0.1})
    assert result.gain == pytest.approx(5.0)
    assert result.seeds == 2


def test_holms_correction_of_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])


def made_up(path, levels, task="digits-100/cnn", seeds=4):
    """Results of a task whose methods have these accuracies; ITRA's rise by 0.2 points a seed, at 80 % of the loss."""
    rows = []
    for method, level in levels.items():
        for run in planned([task], [method], list(range(seeds)), "test"):
            measures = dict.fromkeys(("macro_f1", "ece", "nc1", "train_loss", "step_seconds", "memory"), 0.5)
            is_ours = method == "itra"
            scores = {"accuracy": level + is_ours * 0.002 * run.seed, "scatter": 0.5 - 0.1 * is_ours}
            rows.append({**run._asdict(), "machine": "an abacus", "loss": 1 - 0.2 * is_ours, **measures, **scores})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_the_page_and_the_readme_say_what_the_results_say(tmp_path, monkeypatch):
    results = tmp_path / "results.jsonl"
    rows = made_up(results, {"trainer": 0.80, "itra": 0.82, "dropout": 0.81})
    stale = {**rows[4], "accuracy": 0.1, "settings": {**rows[4]["settings"], "matching_weight": 7.0}}
    tuning = {**rows[4], "accuracy": 0.1, "split": "validation"}
    unreported = {**rows[4], "accuracy": 0.1, "seed": 100}
    with results.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in (stale, tuning, unreported))
    monkeypatch.setattr(summarise, "claims_table", lambda results: [])
    text = page(current(results), {})
    # gains of 2.0, 2.2, 2.4 and 2.6 points: mean 2.3, standard error 0.1291, t of 3 degrees of freedom 3.182
    row = "| digits-100/cnn | 80.0 ± 0.0 | 82.3 ± 0.3 | **+2.30 (+1.89 to +2.71)** | 4 of 4 | -20 % | +0 % | -20 % |"
    assert row in text
    assert "on 1 tasks. On 1 of them" in text
    assert "| digits-100/cnn | +2.30 * | +1.00 |" in text
    assert "| an abacus | CPU | 12 |" in text
    assert "Not run yet (`resnet18` and `bf16` need a GPU): cifar10-1000/resnet18" in text
    assert "{" not in text
    part = readme_part(current(results))
    assert "| few images, small CNN | 2 convolutions | 1 (4) | +2.30 | -20 % | +0 % | -20 % |" in part
    assert "1 tasks: significantly better on 1, worse on 0." in part


def test_the_page_is_that_of_the_results_and_short_enough_to_be_read():
    results, fresh = current(HERE / "results.jsonl"), fresh_results(HERE / "fresh.jsonl")
    text = (ROOT / "docs" / "evidence.md").read_text()
    assert text == page(results, fresh)
    assert len([word for line in text.splitlines() if not line.startswith("|") for word in line.split()]) <= 2500
    readme = (ROOT / "README.md").read_text()
    assert readme == readme_with(readme, readme_part(results))
    assert len([line for line in readme_part(results).splitlines() if line.startswith("|")]) - 2 <= 8


def test_sentences_written_by_hand_hold_no_figure_of_a_result():
    """Their figures are put in by the command; what is left are names, and numbers of the method."""
    text = (HERE / "evidence.md").read_text()
    assert not re.findall(r"[+-]?\d+[.,]\d+|\d+ ?%|\d+ (?:points|of \d+)", text.replace("95 %", ""))


def test_itra_is_held_against_each_rival_over_the_tasks_that_have_it():
    def seeds(*accuracies):
        return {seed: {"accuracy": value} for seed, value in enumerate(accuracies)}

    results = {
        "a": {"trainer": seeds(0.5, 0.5), "itra": seeds(0.6, 0.622, 0.1), "dropout": seeds(0.6, 0.6)},
        "b": {"trainer": seeds(0.5, 0.5), "itra": seeds(0.6, 0.6), "dropout": seeds(0.63, 0.63)},
        "c": {"trainer": seeds(0.5), "itra": seeds(0.6)},  # no rival was run there
    }
    rows = rivals_table(results)[2:-1]
    # over dropout +1.1 and -3: mean -0.95, standard error 2.05, t of one degree of freedom 12.706
    assert rows == ["| dropout | 2 | +11.50 (-7.56 to +30.56) | -0.95 (-27.00 to +25.10) |"]


def test_the_papers_claims_hold_where_the_interval_says_so(tmp_path):
    task = CLAIM_TASKS[0]
    lines = []
    for seed, noise in enumerate((0.0, 0.1, 0.2)):
        for method, values in (("trainer", (1.0, 1.0, 1.0)), ("itra", (0.5, 1.5, 1.1 - noise))):
            moments = dict(zip(("early", "middle", "late"), (value + noise for value in values), strict=True))
            lines.append({"task": task, "method": method, "seed": seed, "measure": "gradient_scatter"} | moments)
            lines[-1]["early"] += noise * (method == "itra") / 10
    (tmp_path / "claims.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scatter = {seed: {"scatter": 0.5 + seed / 10} for seed in range(3)}
    less = {seed: {"scatter": 0.3 + seed / 11} for seed in range(3)}
    results = {name: {"trainer": scatter, "itra": less} for name in CLAIM_TASKS}
    rows = claims_table(results, tmp_path / "claims.jsonl")[2:-1]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [row[-1] for row in cells] == ["holds"] * 3 + ["holds / the contrary / not seen"]
    assert cells[3][:5] == ["less over-adaptation", "gradient scatter", task, "1.1 / 1.1 / 1.1", "0.61 / 1.6 / 1.1"]


def test_claims_are_measured_within_a_run(monkeypatch):
    monkeypatch.setattr(claims, "settings", lambda *given: settings(*given) | {"max_steps": 20})
    for measure in claims.MEASURES:
        row = claims.measure_run("digits-300/cnn", "itra", 0, measure, {})
        assert all(np.isfinite(row[moment]) for moment in claims.MOMENTS)


def test_classes_are_merged_into_two():
    assert [row["labels"] for row in claims.merged([{"labels": label} for label in (0, 1, 2, 7)])] == [0, 1, 0, 1]


def test_what_was_tuned_stands_with_its_seeds():
    chosen = {"trainer": {"learning_rate": 0.02, "weight_decay": 1.0}, "dropout": {"dropout": 0.3}}
    assert "| digits-100/cnn | 0.02 | 1 | 3 |" in tuned_table({"digits-100/cnn": chosen}, {"digits-100/cnn": 3})


def test_a_kind_of_tasks_has_the_mean_gain_of_its_tasks_and_the_interval_over_them():
    def task(gain, loss, seeds=3):
        runs = {"trainer": (0.8, 1.0), "itra": (0.8 + gain / 100, loss)}
        return {
            name: {
                seed: {"accuracy": accuracy + seed / 100, "loss": own, "ece": own**2, "scatter": 0.5}
                for seed in range(seeds)
            }
            for name, (accuracy, own) in runs.items()
        }

    results = {
        "digits-100/cnn": task(1.0, 0.8),
        "digits-300/cnn": task(2.0, 0.9),
        "fashion_mnist-300/cnn": task(0.0, 1.0, seeds=5),
        "digits-100/vit": task(-3.0, 1.0),
        "fashion_mnist-all/cnn": task(0.5, 1.0),
        "sst2-all/minilm": task(-0.5, 1.2),
        "sst2-1000/minilm-lora": task(0.25, 1.0),
        "banking77-10shot/minilm-last2": task(-0.25, 1.0),
        "digits-300/vit": task(9.0, 1.0, seeds=1),  # one seed tells nothing
    }
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in kinds_table(results)[2:] if line]
    # the small CNN: standard error 1 / sqrt(3), t of two degrees of freedom 4.303
    assert [[row[0], *row[2:]] for row in rows] == [
        ["few images, small CNN", "3 (11)", "+1.00 (-1.48 to +3.48)", "-10 %", "-18 %", "+0 %"],
        ["few images, small ViT", "1 (3)", "-3.00", "+0 %", "+0 %", "+0 %"],
        ["few queries, 77 intents", "1 (3)", "-0.25", "+0 %", "+0 %", "+0 %"],
        ["few texts, LoRA", "1 (3)", "+0.25", "+0 %", "+0 %", "+0 %"],
        ["all rows there are", "2 (6)", "+0.00 (-6.35 to +6.35)", "+10 %", "+22 %", "+0 %"],
    ]


def test_readme_takes_the_headline_between_its_marks():
    text = "a\n<!-- evidence -->\nold\n<!-- /evidence -->\nb\n"
    assert readme_with(text, "new") == "a\n<!-- evidence -->\nnew\n<!-- /evidence -->\nb\n"
    with pytest.raises(ValueError, match="<!-- evidence -->"):
        readme_with("no marks", "new")


def test_the_picture_shows_the_means_of_the_table():
    results = current(HERE / "results.jsonl")
    axis = kinds_forest(results).axes[0]
    names = [label.get_text() for label in axis.get_yticklabels()]
    means = [line.get_xdata()[0] for line in axis.lines if line.get_marker() == "D"]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in kinds_table(results)[2:-1]]
    assert [(row[0], float(row[3].split()[0])) for row in rows] == [
        (name, pytest.approx(mean, abs=0.005)) for name, mean in zip(names, means, strict=True)
    ]
