"""The report of a finished run, or of a comparison: one HTML file that needs nothing else, and its pictures as PNG.

Needs matplotlib and jinja2, which the extra `itra_hf[report]` installs.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    import jinja2
    import matplotlib  # noqa: F401  what the modules below draw with
except ImportError as error:
    raise ImportError(
        f"the report needs {error.name}; pip install matplotlib jinja2, or this package with its extra 'report'"
    ) from error

from itra_hf.files import reading, write_anew
from itra_hf.report.class_pictures import class_pictures
from itra_hf.report.comparison_pictures import comparison_pictures, difference_picture, map_pictures, runs_of_both
from itra_hf.report.drawing import Picture
from itra_hf.report.maps import both_maps, feature_maps, page_legend
from itra_hf.report.run_pictures import run_pictures
from itra_hf.report.runs import Run
from itra_hf.version import __version__

COMPARISON = "comparison.json"


def write_report(run_dir: str | Path) -> Path:
    """Write the report of a finished run into its folder.

    It shows the log in `trainer_state.json`. If the run had an `ITRADiagnosticsCallback`, it also shows the settings,
    and the features before and after training. No model is loaded.

    Args:
        run_dir: the run's `output_dir`.

    Returns:
        The path of `report.html`. The same folder has the pictures in the folder `report`, and `features.png`, if the
        features before and after training were saved.

    Raises:
        FileNotFoundError: if the folder holds no `trainer_state.json`.
        ValueError: if a file was cut off, or was not written by a run; the message names the file.
    """
    folder = Path(run_dir)
    run = Run(folder)
    with reading(f"the run in {folder}"):
        return _write(folder / "report.html", **_run_page(run, folder))


def _run_page(run: Run, folder: Path) -> dict[str, Any]:
    warnings = []
    collapsed = [str(step) for step, value in zip(*run.feature_series("collapsed"), strict=True) if value]
    if collapsed:
        warnings.append(f"The features had collapsed to one point at step {', '.join(collapsed)}: they are useless.")
    if reason := run.config.get("hardly_matched"):
        warnings.append(f"The matching hardly took place: {reason}")
    features, saved = both_maps(run), run.before if run.after is None else run.after
    if features is not None:
        features.save(folder)
    return {
        "title": f"Run {run.name}",
        "subtitle": _subtitle(run),
        "warnings": warnings,
        "tables": [_figures(run)] if run.figures() else [],
        "sections": [
            _section("Curves", run_pictures(run), folder),
            _section("Features", feature_maps(run), folder, [] if saved is None else page_legend(saved)),
            _section("Scatter within classes", class_pictures(run), folder),
        ],
        "settings": run.settings,
    }


def write_comparison(results: str | Path) -> Path:
    """Write the report of a comparison of Trainer and ITRATrainer.

    Args:
        results: the `comparison.json` of `itra-hf compare`; the folders of its runs are read if they are there.

    Returns:
        The path of `comparison.html`, next to the json. `comparison.png` shows the paired differences.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file was cut off, or was not written by a comparison.
    """
    path = Path(results)
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        return _write(path.parent / "comparison.html", **_comparison_page(content, path.parent))


def _comparison_page(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    differences = difference_picture(content)
    if differences is not None:
        differences.save(folder)
    runs = runs_of_both(content, folder)
    maps, legend = map_pictures(runs)
    return {
        "title": "Trainer and ITRATrainer",
        "subtitle": f"{content['model']} on {content['dataset']} ({content['task']}). {content.get('matched') or ''}",
        "warnings": list(content.get("warnings", [])),
        "sentence": content["sentence"],
        "tables": [_differences(content), *_further(content), _runs(content)],
        "sections": [
            _section("Paired by seed", [differences, *comparison_pictures(content, runs)], folder),
            _section("Features", maps, folder, legend),
        ],
        "settings": dict(content["settings"]),
    }


def main(argv: list[str]) -> Path:
    """`itra-hf report FOLDER`: of a comparison if the folder holds a `comparison.json`, else of a run."""
    if len(argv) != 1:
        raise ValueError(f"got {len(argv)} arguments; give one, the folder of a run or of a comparison")
    folder = Path(argv[0])
    page = write_comparison(folder / COMPARISON) if (folder / COMPARISON).exists() else write_report(folder)
    print(page)
    return page


def _write(path: Path, **content: Any) -> Path:
    loader = jinja2.PackageLoader("itra_hf.report", ".")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    page = environment.get_template("page.html.jinja")
    defaults: dict[str, Any] = {"warnings": [], "sentence": "", "version": __version__}
    write_anew(path, page.render(defaults | content))
    return path


def _section(
    title: str, pictures: Sequence[Picture | None], folder: Path, legend: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    if (folder / "report").is_symlink():
        (folder / "report").unlink()  # else the pictures would go elsewhere
    drawn = [picture.save(folder / "report") for picture in pictures if picture is not None]
    return {"title": title, "pictures": drawn, "legend": legend}


def _subtitle(run: Run) -> str:
    config = run.config
    steps = max((int(entry["step"]) for entry in run.history), default=0)
    parts = [f"{config['model']}, trained by {config['trainer']}" if config else "", f"{steps:,} steps"]
    parts.append(config.get("matching_line") or "")
    if (share := config.get("diagnostics_share")) is not None:
        parts.append(f"measuring between the first and the last step took {share:.1%} of the time")
    if config.get("skipped_measurements"):
        parts.append(f"{config['skipped_measurements']} measurements passed over to keep it so")
    return "; ".join(part for part in parts if part)


def _figures(run: Run) -> dict[str, Any]:
    rows = [(name.removeprefix("eval_"), *map(_digits, values)) for name, *values in run.figures()]
    return {
        "title": "On the evaluation set",
        "head": ["", "first", "last"],
        "rows": rows,
        "note": "The first and the last that was logged. One run proves nothing: compare several seeds.",
    }


def _differences(content: dict[str, Any]) -> dict[str, Any]:
    rows = [(name, *_cells(entry)) for name, entry in content["differences"].items()]
    head = ["mean", "Trainer", "ITRATrainer", "difference", "95 % interval"]
    note = "Means over the seeds; differences are ITRATrainer minus Trainer, paired by seed."
    return {"title": "Differences", "head": head, "rows": rows, "note": note}


def _further(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The table of the further arms, in the main metric and the loss; none without such arms."""
    rows = [
        (f"{pair['second']} against {pair['first']}", name, *_cells(pair["differences"][name]))
        for pair in content.get("also", [])
        for name in dict.fromkeys((content["metric"], "loss"))
        if name in pair["differences"]
    ]
    head = ["arms", "mean", "reference", "arm", "difference", "95 % interval"]
    note = "Differences are the arm named first minus its reference, paired by seed."
    return [{"title": "Further arms", "head": head, "rows": rows, "note": note}] if rows else []


def _cells(entry: dict[str, Any]) -> tuple[str, str, str, str]:
    """Both means, their difference and its interval."""
    interval = "" if entry["low"] is None else f"{entry['low']:+.3g} to {entry['high']:+.3g}"
    return _digits(entry["trainer"]), _digits(entry["itra"]), f"{entry['difference']:+.3g}", interval


def _runs(content: dict[str, Any]) -> dict[str, Any]:
    names = list(content["differences"])
    heads = [name.replace("_", "_\u200b") for name in names]  # may break there, where a phone has no room
    rows = [
        (run["seed"], run["trainer"], *(_digits(run["metrics"].get(name)) for name in names), f"{run['seconds']:.1f}")
        for run in content["runs"]
    ]
    return {"title": "Every run", "head": ["seed", "trainer", *heads, "seconds"], "rows": rows, "note": ""}


def _digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
