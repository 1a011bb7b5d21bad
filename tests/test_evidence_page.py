"""What the evidence measures and says: honest statistics, tables, targets, pictures, the page and the README."""

import json
import math
from statistics import mean, stdev

import numpy as np
import pytest
import torch
from forest import main_forest, methods_forest
from kinds import kinds_table
from measures import expected_calibration_error, nc1
from methods import METHODS
from pairs import compare, holm, verdict
from plan import (
    ABLATIONS_OF,
    DEFAULT,
    FRESH_METHODS_OF,
    FRESH_SEEDS,
    LOW_DATA_IMAGES,
    MAIN,
    METHODS_OF,
    MOST_ACCURATE,
    OTHERS,
    tuning_seeds,
)
from runs import HERE, planned, read_results, read_tuned
from scipy import stats
from summarise import ROOT, by_method, current, headline, machines, page, readme_with, tuning_rows, verdicts
from tables import family, gain_cells, main_table, rivals_table, task_tables
from targets import targets
from tried import tried_table, tuned_table
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
    assert gain_cells(compare({0: 0.5}, {0: 0.25}), 1.0)[0] == "+25.00"


def test_what_the_page_reports_is_in_the_plan_and_at_what_tuning_found_best():
    """So `make evidence` repeats the page, and nothing else."""
    tuning, tuned = read_results(HERE / "tuning.jsonl"), read_tuned()
    for task, methods in current(HERE / "results.jsonl").items():
        plan = METHODS_OF.get(task, DEFAULT)
        assert set(methods) <= {*plan, *ABLATIONS_OF.get(task, [])}
        for method in [name for name in plan if name == "trainer" or METHODS[name].knob is not None]:
            grid = grid_of(task, method)
            runs = planned([task], [method], tuning_seeds(task, method), "validation", grid)
            assert tuned[task][method] == best([tuning[run.key] for run in runs], grid)


def test_the_fresh_runs_are_those_of_the_plan_at_todays_settings_and_on_seeds_that_nothing_else_has():
    plan = {
        run.key for task, methods in FRESH_METHODS_OF.items() for run in planned([task], methods, FRESH_SEEDS, "test")
    }
    assert set(read_results(HERE / "fresh.jsonl")) == plan
    others = [read_results(HERE / f"{name}.jsonl").values() for name in ("results", "tuning", "tried")]
    assert not {row["seed"] for rows in others for row in rows} & set(FRESH_SEEDS)


def test_the_most_accurate_settings_are_those_of_the_tuning():
    tuned = read_tuned()
    for task in FRESH_METHODS_OF:
        rows = tuning_rows({task: {"trainer": {}}})[task, "trainer"]
        means = [
            (mean(row["accuracy"] for row in rows if point.items() <= row["settings"].items()), point)
            for point in grid_of(task, "trainer")
        ]
        top = max(means, key=lambda pair: pair[0])[1]
        name = ",".join(f"{option}={value}" for option, value in top.items())
        assert MOST_ACCURATE.get(task) == (None if top == tuned[task]["trainer"] else name)


def test_only_seeds_of_both_are_compared():
    result = compare({0: 0.5, 1: 0.6, 2: 0.9}, {0: 0.4, 1: 0.6, 3: 0.1})
    assert result.gain == pytest.approx(5.0)
    assert result.seeds == 2


def test_holms_correction_of_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])


def test_the_page_says_what_the_results_say(tmp_path):
    rows = []
    for method, level in (("trainer", 0.80), ("itra", 0.82), ("dropout", 0.81)):
        for run in planned(["digits-100/cnn"], [method], list(range(4)), "test"):
            measures = dict.fromkeys(("macro_f1", "ece", "nc1", "scatter", "train_loss", "step_seconds", "memory"), 0.5)
            accuracy = level + run.seed * (0.002 if method == "itra" else 0.0)
            rows.append({**run._asdict(), "machine": "an abacus", "accuracy": accuracy, "loss": 1 - level, **measures})
    stale = {**rows[4], "accuracy": 0.1, "settings": {**rows[4]["settings"], "matching_weight": 7.0}}
    tuning = {**rows[4], "accuracy": 0.1, "split": "validation"}
    results = tmp_path / "results.jsonl"
    unreported = {**rows[4], "accuracy": 0.1, "seed": 100}
    results.write_text("".join(json.dumps(row) + "\n" for row in [*rows, stale, tuning, unreported]))
    text = page(current(results), current(results))
    # gains of 2.0, 2.2, 2.4 and 2.6 points: mean 2.3, standard error 0.1291, t of 3 degrees of freedom 3.182
    assert "| digits-100/cnn | 4 | 80.0 ± 0.0 | 82.3 ± 0.3 | +2.30 (+1.89 to +2.71) |" in text
    assert "| 4 / 0 / 0 | -10 % |" in text
    assert "- better: digits-100/cnn (+2.30)" in text
    assert "| dropout | 4 | 81.00 ± 0.00 | +1.00" in text
    assert "ran with one thread a process on: an abacus." in text
    first = "accuracy +2.30 points on average (+2.30 to +2.30), significantly better on 1 of 1"
    assert first in headline(current(results), current(results))


def test_the_page_says_which_tasks_ran_on_another_machine():
    results = {
        task: {"trainer": {0: {"machine": name}}, "itra": {0: {"machine": name}}}
        for task, name in (("a", "a slide rule"), ("b", "an abacus"), ("c", "an abacus"), ("d", "a slide rule"))
    }
    results["d"]["itra"] = {0: {"machine": "an abacus"}}  # the methods are named where not all of a task ran there
    assert machines(results) == "an abacus; a, d (trainer) on a slide rule"
    for task in ("a", "d"):  # a machine of many methods is named without them, though more tasks had some on the other
        results[task] |= {method: {0: {"machine": "a slide rule"}} for method in ("mixup", "dropout", "supcon")}
    assert machines(results) == "a slide rule; b, c, d (itra) on an abacus"


def test_the_time_of_a_step_is_compared_on_one_machine_alone():
    row = {"accuracy": 0.5, "loss": 1.0, "ece": 0.1, "scatter": 0.3, "nc1": 0.2, "step_seconds": 1.0}
    results = {
        task: {
            "trainer": {seed: {**row, "machine": "an abacus"} for seed in range(2)},
            "itra": {seed: {**row, "step_seconds": 1.25, "machine": name} for seed in range(2)},
        }
        for task, name in (("a", "an abacus"), ("b", "a slide rule"))
    }
    same, other = (line.split("|")[-2].strip() for line in main_table(results)[2:4])
    assert (same, other) == ("+25 %", "")


def test_times_of_other_machines_than_trainers_do_not_stand_beside_its_own():
    measures = dict.fromkeys(("accuracy", "macro_f1", "loss", "train_loss", "ece", "nc1", "scatter", "memory"), 0.5)
    results = {
        "a": {
            method: {0: {**measures, "step_seconds": 0.002, "machine": name}}
            for method, name in (("trainer", "an abacus"), ("itra", "an abacus"), ("mixup", "a slide rule"))
        }
    }
    assert [line.split("|")[-3].strip() for line in task_tables(results)[4:7]] == ["2.0", "2.0", ""]


def test_itra_is_held_against_each_rival_on_the_seeds_of_both():
    def seeds(*accuracies):
        return {seed: {"accuracy": value} for seed, value in enumerate(accuracies)}

    results = {
        "a": {"trainer": seeds(0.5, 0.5), "itra": seeds(0.6, 0.622, 0.1), "dropout": seeds(0.6, 0.6)},
        "b": {"trainer": seeds(0.5), "itra": seeds(0.6)},  # no rival was run there
    }
    header, _, row, end = rivals_table(results)
    cells = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    # gains of 0.0 and 2.2; standard error 1.1, t of one degree of freedom 12.706
    assert cells == dict.fromkeys(cells, "") | {
        "| task": "| a",
        "dropout": "+1.10 (-12.88 to +15.08)",
        "flooding |": " |",
    }
    assert end == ""


def test_a_task_leans_where_only_its_own_interval_leaves_out_zero():
    gains = {"a": (1, 0.1), "b": (-1, 0.1), "c": (0.857, 1), "d": (-0.857, 1), "e": (0.2, 1)}  # c and d: p = 0.03
    results = {
        task: {
            "trainer": {seed: {"accuracy": 0.5} for seed in range(10)},
            "itra": {seed: {"accuracy": 0.5 + (gain + (-1) ** seed * spread) / 100} for seed in range(10)},
        }
        for task, (gain, spread) in gains.items()
    }
    assert verdicts(results) == [
        "- better: a (+1.00)",
        "- worse: b (-1.00)",
        "- leans better: c (+0.86)",
        "- leans worse: d (-0.86)",
        "- no difference seen: e (+0.20)",
    ]


def test_what_was_tried_is_compared_with_trainer_at_the_same_options(tmp_path):
    names = ["trainer", "trainer:label_smoothing_factor=0.1", "itra:label_smoothing_factor=0.1,matching_weight=3"]
    rows = []
    for level, name in enumerate(names):
        for run in planned(["digits-100/cnn"], [name], [100, 101], "validation"):
            accuracy = 0.8 + level / 100 + run.seed % 2 / 1000 * level
            measures = {"loss": 1.0 + level, "ece": 0.5, "scatter": 0.5, "train_loss": 0.1}
            rows.append({**run._asdict(), "accuracy": accuracy, **measures})
    results = tmp_path / "tried.jsonl"
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = tried_table(by_method(results))
    # gains of 1.0 and 1.1 points; standard error 0.05, t of one degree of freedom 12.706
    assert f"| `{names[2]}` | `{names[1]}` | 2 | +1.05 (+0.41 to +1.69) | 2 / 0 / 0 | +50 % | +0 % |" in lines[3]
    assert len([line for line in lines if line]) == 4  # and a row for label smoothing alone, and the head


def test_what_was_tried_is_held_against_the_defaults_on_the_seeds_of_both():
    row = {"loss": 1.0, "ece": 0.5, "scatter": 0.5, "train_loss": 0.1}
    levels = {"trainer": (0.5, 0.5, 0.5), "itra": (0.6, 0.6, 0.9), "itra:unbiased=true": (0.59, 0.59)}
    methods = {
        name: {seed: {**row, "accuracy": value} for seed, value in enumerate(values)} for name, values in levels.items()
    }
    defaults, unbiased = tried_table({"digits-100/cnn": methods})[2:4]
    assert defaults.endswith("| +0 % |  |")
    assert unbiased.endswith("| +0 % | -1.00 |")


def tuning(task, method, seeds, **better):
    """Runs of all of a grid, 90 % accurate, and a point more where the setting has all of these values."""
    return {
        (task, method): [
            {"settings": point, "seed": seed, "accuracy": 0.90 + 0.01 * (better.items() <= point.items())}
            for point in grid_of(task, method)
            for seed in seeds
        ]
    }


def test_what_was_tuned_stands_with_its_seeds_and_with_what_the_most_accurate_setting_had_more():
    task = "digits-100/cnn"
    chosen = {"trainer": {"learning_rate": 0.02, "weight_decay": 1.0}, "dropout": {"dropout": 0.3}}
    runs = tuning(task, "trainer", [100, 101], learning_rate=0.01) | tuning(task, "dropout", [100], dropout=0.3)
    lines = tuned_table({task: chosen}, runs)[2:]
    assert "| digits-100/cnn | trainer | learning_rate 0.02, weight_decay 1 (end) | 2 | 1.00 |" in lines
    assert "| digits-100/cnn | dropout | dropout 0.3 | 1 | 0.00 |" in lines


def test_what_was_tuned_says_where_the_best_is_the_end_of_its_grid():
    text = {"trainer": {"learning_rate": 3e-5, "weight_decay": 0.01}}  # the only decay, and the rate that was added
    lines = tuned_table({"sst2-200/minilm": text}, tuning("sst2-200/minilm", "trainer", [100]))[2:]
    assert lines[0] == "| sst2-200/minilm | trainer | learning_rate 3e-05 (end), weight_decay 0.01 | 1 | 0.00 |"


def test_targets_are_held_against_what_came_out():
    def seeds(*accuracies, **measures):
        return {seed: {"accuracy": value, **measures} for seed, value in enumerate(accuracies)}

    plain = {"loss": 1.0, "scatter": 0.4}
    results = {
        "digits-100/cnn": {
            "trainer": seeds(0.900, 0.910, **plain),
            "itra": seeds(0.904, 0.914001, loss=0.84, scatter=0.31),
            "label_smoothing": seeds(0.9, 0.9),
            "dropout": seeds(0.9, 0.9),
            "itra+label_smoothing": seeds(0.91, 0.911),  # p = 0.03, with two others corrected to 0.09
            "itra+dropout": seeds(0.91, 0.91001),
        },
        "banking77-5shot/minilm-last2": {
            "trainer": seeds(0.75, 0.76),
            "itra": seeds(0.76, 0.772),
            "label_smoothing": seeds(0.77, 0.77),
            "itra+label_smoothing": seeds(0.77, 0.78),
        },
        "sst2-200/minilm-last2": {"trainer": seeds(0.80, 0.82), "itra": seeds(0.80, 0.813)},
        "fashion_mnist-all/cnn": {"trainer": seeds(0.9, 0.9), "itra": seeds(0.9, 0.896)},
        "digits-100/vit": {"trainer": seeds(0.9, 0.9), "itra": seeds(0.9, 0.8)},  # nothing was asked of it
    }
    rows = [[cell.strip() for cell in line.split("|")[2:4]] for line in targets(results)[2:] if line]
    # gains of 0.4; 1.0 and 1.2; those on top; 0.0 and 1.0; 0.0 and -0.7; 0.0 and -0.4
    expected = [
        *(["1 of 1", "no"], ["+0.40", "no"], ["-16.0 %", "yes"], ["-22.5 %", "no"]),
        *(["+1.10", "yes"], ["+1.05", "leans better"], ["+1.00", "better"]),
        *(["+0.50", "no"], ["-0.35", "no"], ["-0.20", "yes"]),
    ]
    assert rows == expected


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
    assert rows == [
        ["few images, cnn", "3", "+1.00 (-1.48 to +3.48)", "2 / 1 / 0", "-10 %", "-18 %", "+0 %"],
        ["few images, vit", "1", "-3.00", "0 / 0 / 1", "+0 %", "+0 %", "+0 %"],
        ["few reviews, two classes, LoRA", "1", "+0.25", "1 / 0 / 0", "+0 %", "+0 %", "+0 %"],
        ["few queries, 77 intents", "1", "-0.25", "0 / 0 / 1", "+0 %", "+0 %", "+0 %"],
        ["all rows", "2", "+0.00 (-6.35 to +6.35)", "1 / 0 / 1", "+10 %", "+22 %", "+0 %"],
    ]


def test_readme_takes_the_headline_between_its_marks():
    text = "a\n<!-- evidence -->\nold\n<!-- /evidence -->\nb\n"
    assert readme_with(text, "new") == "a\n<!-- evidence -->\nnew\n<!-- /evidence -->\nb\n"
    with pytest.raises(ValueError, match="<!-- evidence -->"):
        readme_with("no marks", "new")


def points(axis):
    """The name and the gain of each row of a forest plot."""
    names = [label.get_text() for label in axis.get_yticklabels()]
    gains = {int(line.get_ydata()[0]): line.get_xdata()[0] for line in axis.lines if line.get_marker() == "o"}
    return [(name, gains[place]) for place, name in enumerate(names)]


def test_forest_plots_show_the_gains_of_the_tables():
    results = current(HERE / "results.jsonl")
    main = family(results, MAIN)
    shown = points(main_forest(results).axes[0])
    assert shown == [(task, gain.gain) for (task, _), (gain, _) in main.items()]
    others = family(results, [pair for pair in OTHERS if pair[1] == "trainer"]) | main
    panels = {axis.get_title(): points(axis) for axis in methods_forest(results).axes if axis.get_visible()}
    assert "digits-100/cnn" in panels
    for task, methods in results.items():
        expected = [(method, others[task, method][0].gain) for method in methods if (task, method) in others]
        assert panels.get(task, []) == (expected if len(expected) > 3 else [])


def test_page_and_readme_are_made_from_the_results():
    results, fresh = current(HERE / "results.jsonl"), by_method(HERE / "fresh.jsonl")
    readme = (ROOT / "README.md").read_text()
    assert (ROOT / "docs" / "evidence.md").read_text() == page(results, fresh)
    assert readme == readme_with(readme, headline(results, fresh))


def test_a_text_among_the_fresh_runs_changes_nothing_that_is_said_of_few_images():
    results, fresh = current(HERE / "results.jsonl"), by_method(HERE / "fresh.jsonl")
    images = {task: fresh[task] for task in LOW_DATA_IMAGES}
    assert set(fresh) > set(images)
    assert headline(results, fresh) == headline(results, images)
    less = [task for (task, _), pair in family(fresh, MAIN).items() if task in images and verdict(*pair) != "better"]
    assert less == ["fashion_mnist-300/cnn"]  # what the page says of counting the text among them
