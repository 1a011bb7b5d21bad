"""The layers of a model that could be meant: linear ones, and those that the user names."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import cast

from torch import nn

from itra_hf.features.reader import HeadNotFoundError


def head_candidates(model: nn.Module) -> list[nn.Linear]:
    """The linear layers that could be the head: as many outputs as the config has labels (all, without a config)."""
    num_labels = getattr(getattr(model, "config", None), "num_labels", None)
    return [layer for layer in linear_layers(model) if num_labels in (None, layer.out_features)]


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    """The linear layers.

    If an adapter wraps a layer as its `base_layer` (PEFT's LoRA, IA3, ...), the adapter stands for the layer, because
    the model uses the adapter's output.
    """
    wrappers = {
        child: module for module in model.modules() for name, child in module.named_children() if name == "base_layer"
    }
    candidates: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            candidate: nn.Module = module
            while candidate in wrappers:
                candidate = wrappers[candidate]
            candidates.append(candidate)
    return cast(list[nn.Linear], candidates)


def module_named(model: nn.Module, name: str) -> nn.Module:
    """The module of that name, or the only one whose name ends with it (an adapter makes names longer).

    A leading dot changes nothing: `".head"` means a module called `head`, because `"head"` is the option's default.

    Raises:
        HeadNotFoundError: if there is none, or several. The message has the nearest names.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    wanted = name.removeprefix(".")
    found = [full for full in modules if full == wanted] or [full for full in modules if full.endswith(f".{wanted}")]
    if wanted and len({modules[full] for full in found}) == 1:
        return modules[found[0]]
    last = {full: full.rpartition(".")[2] for full in modules if full}
    similar = get_close_matches(wanted.rpartition(".")[2], last.values(), n=3)
    nearest = found or get_close_matches(wanted, modules, n=3) or [full for full in last if last[full] in similar]
    raise HeadNotFoundError(
        f"feature_layer={name!r} is the name of {len(found) or 'no'} modules of {type(model).__name__}; take "
        f"{', '.join(map(quoted, nearest[:5])) or 'a name that model.named_modules() gives'}"
    )


def quoted(name: str) -> str:
    """A module's name as `feature_layer` takes it."""
    return repr(".head" if name == "head" else name)


def listed(model: nn.Module, modules: Iterable[nn.Module]) -> str:
    """Modules by the names that `feature_layer` takes."""
    names = {module: name for name, module in model.named_modules()}
    known = [names.get(module, type(module).__name__) for module in modules]
    return ", ".join(map(quoted, known))
