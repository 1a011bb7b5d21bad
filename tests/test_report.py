"""The report: what it shows of a run and of a comparison, and how a browser shows it."""

import html
import importlib
import json
import re
import sys
from types import SimpleNamespace

import browser
import numpy as np
import pytest
import tiny
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from sklearn.decomposition import PCA

from itra_hf import report
from itra_hf.command import cli
from itra_hf.diagnostics import ITRADiagnosticsCallback, compactness
from itra_hf.diagnostics.saved_run import SavedRun
from itra_hf.report.class_pictures import class_pictures
from itra_hf.report.comparison_pictures import difference_picture
from itra_hf.report.maps import both_maps, class_styles, feature_maps, principal_axes
from itra_hf.report.run_pictures import run_pictures
from itra_hf.report.runs import Run, class_scatters

MEASURES = ("compactness", "gradient_scatter", "over_adaptation")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short real run with every measure, and its report."""
    folder = tmp_path_factory.mktemp("runs") / "a <b>run"
    torch.manual_seed(0)
    callback = ITRADiagnosticsCallback(MEASURES, modes=[i % 6 for i in range(48)], max_share=1)
    options = {"max_steps": 12, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 4, "learning_rate": 0.05}
    options |= {"matching_weight": 80.0, "matching_full_weight_rows": 6}  # a quarter: 48 rows, two epochs
    keywords = {"callbacks": [callback]}
    trainer = tiny.trainer(folder, tiny.Mlp(), tiny.vectors(), keywords=keywords, **options)
    trainer.train()
    report.write_report(folder)
    return folder


def many_classes(folder, number=77, rows=400, names=None):
    """A run of which only the features are known."""
    rng = np.random.default_rng(0)
    labels = np.arange(rows) % number
    names = names or [f"intent_with_a_rather_long_name_{label}" for label in range(number)]
    saved = SavedRun(folder)
    saved.folder.mkdir(parents=True)
    for when, scale in (("before", 2.0), ("after", 0.5)):
        features = rng.normal(size=(number, 16))[labels] + scale * rng.normal(size=(rows, 16))
        arrays = {"features": features.astype(np.float32), "labels": labels, "names": np.array(names)[labels]}
        np.savez(saved.folder / f"{when}.npz", **arrays)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 1, "eval_loss": 1.0}]}))
    return folder


def comparison(folder, runs=()):
    """What `itra-hf compare` leaves."""
    lines = []
    for seed in (1, 2):
        for trainer, gain in (("Trainer", 0.0), ("ITRATrainer", 0.01 * seed)):
            metrics = {"accuracy": 0.8 + gain, "loss": 0.5 - gain, "broken": None}
            line = {"seed": seed, "trainer": trainer, "metrics": metrics, "seconds": 1.0, "steps": 12}
            lines.append(line | {"folder": f"{trainer}-seed-{seed}"})
    found = {"seeds": [1, 2], "trainer": 0.8, "itra": 0.815, "values": [0.01, 0.02], "difference": 0.015}
    differences = {"accuracy": found | {"low": -0.05, "high": 0.08}, "loss": found | {"low": None, "high": None}}
    content = {"task": "image-classification", "model": "vit", "dataset": "<digits>", "metric": "accuracy"}
    content |= {"greater_is_better": True, "settings": {"learning_rate": 0.1}, "runs": lines}
    content |= {"differences": differences, "verdict": "cannot tell", "sentence": "It cannot tell."}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.json").write_text(json.dumps(content))
    return folder / "comparison.json"


def shown_text(page):
    return html.unescape(re.sub(r"<style>.*?</style>|<[^>]*>", " ", page.read_text(), flags=re.DOTALL))


def test_the_run_has_written_its_report(run):
    names = {path.stem for path in (run / "report").glob("*.png")}
    expected = {"loss", "matching", "guards", "compactness", "separation", "modes", "gradients", "over_adaptation"}
    assert names == expected | {"map-before", "map-after", "classes"}
    for path in [*(run / "report").glob("*.png"), run / "features.png"]:
        with Image.open(path) as picture:
            assert min(picture.size) > 300
            assert len(set(picture.convert("L").resize((64, 64)).getdata())) > 3  # not blank
    text = shown_text(run / "report.html")
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    last = [entry["eval_scatter_ratio"] for entry in history if "eval_scatter_ratio" in entry][-1]
    assert f"{last:.4g}" in text
    assert "matching_weight 80.0" in " ".join(text.split())


def test_needs_nothing_from_elsewhere_and_escapes_what_users_write(run, tmp_path):
    for page in (run / "report.html", report.write_comparison(comparison(tmp_path))):
        source = page.read_text()
        assert "default-src 'none'" in source
        assert "<script" not in source
        links = re.findall(r"""(?:src|href|srcset|url)\s*[=(]\s*["']?([^"'\s)>]+)""", source)
        assert len(links) > 2
        assert all(link.startswith("data:") for link in links)
    assert "Run a <b>run" in shown_text(run / "report.html")
    assert "on <digits> (" in shown_text(tmp_path / "comparison.html")


def test_every_picture_has_a_text(run):
    texts = re.findall(r'<img[^>]* alt="([^"]*)"', (run / "report.html").read_text())
    assert len(texts) == 11
    assert all(len(text) > 40 for text in texts)


@pytest.mark.skipif(browser.CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_every_picture_on_desktop_and_phone(run, tmp_path, dark):
    many = report.write_report(many_classes(tmp_path / "run"))
    pages = [run / "report.html", many, report.write_comparison(comparison(tmp_path))]
    for page, width in [(pages[0], 1200), (pages[0], 390), (pages[1], 390), (pages[2], 390)]:
        seen, console = browser.look(page, width, tmp_path, dark=dark)
        assert console == []
        assert seen.width <= width
        assert seen.pictures
        assert seen.background == ("rgb(22, 27, 34)" if dark else "rgb(255, 255, 255)")
        for complete, natural, shown, _ in seen.pictures:
            assert complete
            assert natural > shown > 300


@pytest.mark.skipif(browser.CHROMIUM is None, reason="Chromium is not installed")
def test_the_browser_would_tell_of_errors(tmp_path):
    page = tmp_path / "broken.html"
    page.write_text("<img src='nowhere.png'><div style='width:900px'>wide</div><script>console.error('x')</script>")
    seen, console = browser.look(page, 390, tmp_path)
    assert console
    assert seen.width > 390
    assert seen.pictures[0][1] == 0


def test_a_report_can_be_made_later_from_a_checkpoint_alone(tmp_path, capsys):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    tiny.trainer(tmp_path, tiny.Mlp(), tiny.vectors(), **options).train()
    capsys.readouterr()
    page = report.main([str(tmp_path)])
    assert capsys.readouterr().out.strip() == str(page)
    assert {path.stem for path in (tmp_path / "report").glob("*.png")} == {"loss", "matching", "guards"}


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no trainer_state\.json.*save_state\(\)"):
        report.write_report(tmp_path)
    with pytest.raises(SystemExit, match=r"^itra-hf report: .*save_state\(\)"):
        cli.main(["report", str(tmp_path)])


def test_curves_are_those_of_the_log(run):
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    drawn = {picture.name: picture for picture in run_pictures(Run(run))}
    for name, key in (("loss", "task_loss"), ("matching", "matching_loss"), ("gradients", "gradient_scatter")):
        values = [(entry["step"], entry[key]) for entry in history if key in entry]
        assert len(values) > 3
        figure = figure_of(drawn[name])
        line = figure.axes[0].lines[0]
        assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == values


def figure_of(picture):
    figure = Figure()
    picture.draw(figure)
    return figure


def test_the_guards_show_the_ramp_beside_the_weight_that_the_cap_left(run):
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    (picture,) = [picture for picture in run_pictures(Run(run)) if picture.name == "guards"]
    ramped, applied = (line.get_ydata() for line in figure_of(picture).axes[0].lines)
    weight = 80.0 * 6 * 2 / 48  # rows for an epoch that leave it whole, epochs, rows
    per_step = [weight * min(1, step / 3.6) for step in range(12)]  # a warmup of 0.3 of 12 steps, logged every 2
    assert list(ramped) == pytest.approx(np.reshape(per_step, (6, 2)).mean(1).tolist())
    assert list(applied) == [entry["matching_weight"] for entry in history if "matching_weight" in entry]
    assert all(np.less_equal(applied, np.add(ramped, 1e-6)))
    assert applied[-1] < ramped[-1]  # the cap is at work


@pytest.mark.parametrize("logging_steps", [1, 2])
def test_steps_with_nothing_to_match_leave_no_dent_in_the_ramp(tmp_path, logging_steps):
    """One row is left for the last step of an epoch; without a cap what is applied is what is asked for."""
    options = {"max_steps": 12, "logging_steps": logging_steps, "matching_warmup_ratio": 1.0}
    options |= {"per_device_train_batch_size": 12, "matching_max_grad_ratio": None}
    keywords = {"callbacks": [ITRADiagnosticsCallback()]}
    tiny.trainer(tmp_path, tiny.Mlp(), tiny.vectors(13), keywords=keywords, **options).train()
    run = Run(tmp_path)
    (picture,) = [picture for picture in run_pictures(run) if picture.name == "guards"]
    ramped, applied = figure_of(picture).axes[0].lines
    steps = list(applied.get_xdata())
    assert steps == [1, 3, 5, 7, 9, 11] if logging_steps == 1 else [2, 4, 6, 8, 10, 12]
    off = np.abs(np.subtract(ramped.get_ydata(), applied.get_ydata()))
    assert max(off) <= (logging_steps - 1) / 24 + 1e-6  # a window that was matched in part has the mean of that part


def test_a_single_evaluation_stands_once(tmp_path):
    history = [{"step": 1, "eval_loss": 2.5, "eval_f1": 0.25}, {"step": 2, "eval_loss": 1.5}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    text = " ".join(shown_text(report.write_report(tmp_path)).split())
    assert "loss 2.5 1.5" in text
    assert "f1 - 0.25" in text


def test_maps_are_the_principal_components():
    rows = np.random.default_rng(0).normal(size=(50, 8)) @ np.diag(range(8)) + 5
    points, shares = principal_axes(rows.astype(np.float32))
    pca = PCA(2).fit(rows)
    np.testing.assert_allclose(np.abs(points), np.abs(pca.transform(rows)), atol=1e-4)
    np.testing.assert_allclose(shares, pca.explained_variance_ratio_, rtol=1e-5)


def test_features_that_are_not_finite_are_left_out(tmp_path):
    """A run that diverged has a report, too."""
    folder = many_classes(tmp_path / "run", number=3, rows=30)
    features = dict(np.load(folder / "_diagnostics" / "before.npz"))
    features["features"][:2, 0] = np.nan, np.inf
    np.savez(folder / "_diagnostics" / "before.npz", **features)
    np.savez(folder / "_diagnostics" / "after.npz", **features | {"features": np.full((30, 4), np.nan)})
    run = Run(folder)
    assert {len(part) for part in run.before.values()} == {28}
    assert run.after is None
    assert shown_text(report.write_report(folder))
    assert [picture.name for picture in feature_maps(run)][:1] == ["map-before"]


def test_umap_keeps_groups_apart_where_it_is_installed():
    pytest.importorskip("umap")
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    features = (rng.normal(size=(40, 5)) + 50 * labels[:, None]).astype(np.float32)
    saved = {"features": features, "labels": labels, "names": labels.astype(str)}
    run = SimpleNamespace(before=saved, after={name: part[:3] for name, part in saved.items()}, config={})
    pictures = feature_maps(run)
    assert [picture.name for picture in pictures] == ["map-before", "map-after", "umap-before"]  # too few rows for two
    axes = figure_of(pictures[-1]).axes[0]
    one, other = (np.asarray(points.get_offsets()) for points in axes.collections)
    gap = np.linalg.norm(one.mean(0) - other.mean(0))
    assert max(np.linalg.norm(part - part.mean(0), axis=1).max() for part in (one, other)) < gap
    assert axes.get_xlabel() == "UMAP 1"


def test_77_classes_look_different_and_are_all_named(tmp_path):
    folder = many_classes(tmp_path / "run")
    styles = class_styles(Run(folder).after)
    assert len({(style["colour"], style["marker"]) for style in styles}) == 77
    text = shown_text(report.write_report(folder))
    assert all(f"{label} intent_with_a_rather_long_name_{label}" in " ".join(text.split()) for label in range(77))


def test_no_picture_is_cut_off(run, tmp_path, monkeypatch):
    spills = {}

    def note(figure, *args, **kwargs):
        FigureCanvasAgg(figure).draw()
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        spills[len(spills)] = max(-box.x0, -box.y0, box.x1 - width, box.y1 - height)

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", note)
    many = Run(many_classes(tmp_path / "run"))
    pictures = [*run_pictures(Run(run)), *class_pictures(Run(run)), *class_pictures(many), *feature_maps(many)]
    pictures += [both_maps(many), difference_picture(json.loads(comparison(tmp_path).read_text()))]
    for picture in pictures:
        picture.png("light")
    assert len(spills) == len(pictures)
    assert {picture.name: spill for picture, spill in zip(pictures, spills.values(), strict=True) if spill > 0} == {}


def test_numbers_on_the_map_do_not_cover_each_other(tmp_path):
    figure = figure_of(feature_maps(Run(many_classes(tmp_path / "run")))[-1])
    figure.set_size_inches(4.6, 4.6)
    figure.set_dpi(200)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) > 10
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_scatters_of_classes_are_those_of_compactness(run):
    saved = Run(run).after
    scatters, counts = class_scatters(saved), np.unique(saved["labels"], return_counts=True)[1]
    expected = compactness(saved["features"], saved["labels"])["scatter_ratio"]
    assert np.dot(list(scatters.values()), counts) / counts.sum() == pytest.approx(expected, rel=1e-6)


def test_class_means_that_differ_by_rounding_alone_have_no_scatter_to_compare_with():
    rows = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    saved = {"features": np.concatenate([rows, np.nextafter(rows, np.float32(9))]), "labels": np.arange(8) // 4}
    assert class_scatters(saved | {"names": saved["labels"].astype(str)}) == {}
    assert compactness(saved["features"], saved["labels"])["scatter_ratio"] == float("inf")


def test_of_many_classes_the_widest_are_shown_in_two_pictures(tmp_path):
    pictures = class_pictures(Run(many_classes(tmp_path / "run", number=150, rows=600)))
    labels = [text.get_text() for picture in pictures for text in figure_of(picture).axes[0].get_yticklabels()]
    assert [len(pictures), len(labels)] == [2, 100]
    scatters = class_scatters(Run(tmp_path / "run").after)
    widest = sorted(scatters, key=scatters.get)[-100:]
    assert {label.split()[0] for label in labels} == {name.rsplit("_", 1)[1] for name in widest}


def test_collapsed_features_are_called_so(tmp_path):
    history = [{"step": step, "eval_collapsed": float(step > 1), "eval_scatter_ratio": float("nan")} for step in (1, 2)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    assert "had collapsed to one point at step 2" in shown_text(report.write_report(tmp_path))


def test_what_was_matched_and_that_it_was_hardly_any_is_shown(run, tmp_path):
    config = json.loads((run / "_diagnostics" / "config.json").read_text())
    assert config["matching_line"].startswith("ITRA matches the input of ")
    text = " ".join(shown_text(run / "report.html").split())
    assert config["matching_line"] in text
    assert ("hardly took place" in text) is (config["hardly_matched"] is not None)
    folder = many_classes(tmp_path / "run", number=3)
    path = folder / "_diagnostics" / "config.json"
    path.write_text(json.dumps(config | {"hardly_matched": "no <b>rows"}))
    assert "The matching hardly took place: no <b>rows" in shown_text(report.write_report(folder))
    path = comparison(tmp_path / "compared")
    told = {"matched": "ITRA matches <b>", "warnings": ["Seed 1: the matching hardly took place."]}
    path.write_text(json.dumps(json.loads(path.read_text()) | told))
    text = shown_text(report.write_comparison(path))
    assert "ITRA matches <b>" in text
    assert told["warnings"][0] in text


def test_entries_of_the_log_that_are_no_numbers_are_passed_over(tmp_path):
    history = [{"step": step, "eval_f1": [0.1, 0.2], "eval_note": "fine", "eval_loss": 1.0 / step} for step in (1, 2)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    assert "0.5" in shown_text(report.write_report(tmp_path))


def test_names_of_classes_are_no_formulas(tmp_path, monkeypatch):
    monkeypatch.setattr("warnings.warn", pytest.fail)
    names = ["$10-$20", "x$_$", r"a $\foo$"]
    assert report.write_report(many_classes(tmp_path / "run", number=3, names=names)).exists()


def test_collapsed_features_are_drawn_without_an_error(tmp_path):
    folder = many_classes(tmp_path / "run", number=3)
    with np.load(folder / "_diagnostics" / "after.npz") as arrays:
        flat = dict(arrays) | {"features": np.ones_like(arrays["features"])}
    np.savez(folder / "_diagnostics" / "after.npz", **flat)
    report.write_report(folder)


def test_a_comparison_shows_runs_differences_and_both_maps(tmp_path):
    for trainer in ("Trainer", "ITRATrainer"):
        many_classes(tmp_path / f"{trainer}-seed-2", number=5)
    page = report.write_comparison(comparison(tmp_path))
    text = " ".join(shown_text(page).split())
    assert "It cannot tell." in text
    assert "accuracy 0.8 0.815 +0.015 -0.05 to +0.08" in text
    assert "Trainer, seed 2, after training" in text
    assert {path.stem for path in (tmp_path / "report").glob("*.png")} >= {"map-Trainer", "map-ITRATrainer", "pairs"}
    assert (tmp_path / "comparison.png").exists()
    assert report.main([str(tmp_path)]) == page


def test_further_arms_leave_the_maps_of_both_trainers(tmp_path):
    path = comparison(tmp_path)
    content = json.loads(path.read_text())
    content["runs"] += [run | {"trainer": "Trainer with x=1", "folder": "arm-seed-2"} for run in content["runs"][2:3]]
    path.write_text(json.dumps(content))
    for folder in ("Trainer-seed-2", "ITRATrainer-seed-2", "arm-seed-2"):
        many_classes(tmp_path / folder, number=5)
    report.write_comparison(path)
    assert {path.stem for path in (tmp_path / "report").glob("map-*")} == {"map-Trainer", "map-ITRATrainer"}


def test_a_comparison_that_was_cut_off_after_one_run_has_a_report(tmp_path):
    path = comparison(tmp_path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"runs": content["runs"][:1], "differences": {}}))
    assert "1 Trainer 1.0" in " ".join(shown_text(report.write_comparison(path)).split())
    assert not (tmp_path / "comparison.png").exists()


def test_a_report_without_matplotlib_says_what_is_missing(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("itra_hf.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="the report needs matplotlib; pip install matplotlib jinja2"):
        importlib.import_module("itra_hf.report")


def test_links_in_the_folder_are_not_followed_for_writing(tmp_path):
    folder = many_classes(tmp_path / "run", number=3)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "page").write_text("mine")
    (folder / "report.html").symlink_to(outside / "page")
    (folder / "features.png").symlink_to(outside / "page")
    (folder / "report").symlink_to(outside)
    report.write_report(folder)
    assert (outside / "page").read_text() == "mine"
    assert [path.name for path in outside.iterdir()] == ["page"]
    assert not any((folder / name).is_symlink() for name in ("report.html", "features.png", "report"))


def test_no_path_in_a_comparison_leads_outside(tmp_path):
    for trainer in ("Trainer", "ITRATrainer"):
        many_classes(tmp_path / "outside" / f"{trainer}-seed-2", number=5)
    path = comparison(tmp_path / "compared")
    content = json.loads(path.read_text())
    for entry in content["runs"]:
        entry["folder"] = f"../outside/{entry['folder']}"
    path.write_text(json.dumps(content))
    assert "after training" not in shown_text(report.write_comparison(path))
