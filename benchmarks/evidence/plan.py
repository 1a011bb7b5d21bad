"""What is run and what is compared: the methods, seeds and ablations of each task, and the families of tests.

The families, the tasks and ten seeds (five where runs are long) came before the results. That some tasks have more
seeds, that rivals were added on texts and with the ResNet and the ViT, and the ablations of the weight for many rows
came after results had been seen.
"""

LOW_DATA_IMAGES = [
    *("digits-100/cnn", "digits-300/cnn"),
    *("fashion_mnist-300/cnn", "fashion_mnist-1000/cnn", "fashion_mnist-5000/cnn"),
]
MORE_IMAGES = [
    *("digits-100/resnet", "digits-300/resnet", "digits-100/vit", "digits-300/vit"),
    *("fashion_mnist-300/resnet", "fashion_mnist-1000/resnet", "fashion_mnist-300/vit", "fashion_mnist-1000/vit"),
    *("fashion_mnist-5000/resnet", "fashion_mnist-5000/vit"),
    *("fashion_mnist-all/cnn", "fashion_mnist-all/resnet", "fashion_mnist-all/vit"),
]
TEXTS = [
    *("banking77-5shot/minilm-last2", "banking77-10shot/minilm-last2"),
    *("sst2-200/minilm-last2", "sst2-1000/minilm-last2"),
    *("banking77-all/minilm-last2", "sst2-all/minilm-last2"),
    *("banking77-5shot/minilm", "banking77-10shot/minilm", "sst2-200/minilm", "sst2-1000/minilm"),
    *("banking77-5shot/minilm-lora", "banking77-10shot/minilm-lora", "sst2-200/minilm-lora", "sst2-1000/minilm-lora"),
    *("banking77-all/minilm", "sst2-all/minilm", "banking77-all/minilm-lora", "sst2-all/minilm-lora"),
]
GPU_IMAGES = [f"cifar10-{size}/resnet18" for size in ("1000", "5000", "all")]
GPU_TASKS = [  # in the order in which they are run
    *GPU_IMAGES,
    *(f"banking77-{size}/minilm-bf16" for size in ("5shot", "10shot", "all")),
    *(f"sst2-{size}/minilm-bf16" for size in ("200", "1000")),
]
GROUPS = {
    "low-data": LOW_DATA_IMAGES,
    "images": [*LOW_DATA_IMAGES, *MORE_IMAGES],
    "texts": TEXTS,
    "gpu": GPU_TASKS,
}
ALL_TASKS = [*GPU_IMAGES, *GROUPS["images"], *GPU_TASKS[3:], *GROUPS["texts"]]

DEFAULT = ["trainer", "itra"]
RIVALS = ["half_batch", "label_smoothing", "dropout", "mixup", "centre_loss", "supcon", "r_drop", "flooding"]
FORMS = ["itra_marginal", "itra_joint", "itra_tuned", "itra_marginal_tuned", "itra_joint_tuned"]
ON_TOP = ["itra+label_smoothing", "itra+dropout"]
METHODS_REPORTED = [*DEFAULT, *RIVALS, *ON_TOP, "itra+mixup", *FORMS]

ON_RANKS = "itra:ranks=2"
RANDOM_PAIRING = "itra:pairing=random"
PAIRING_ALONE = "itra:matching_weight=1e-9"
NO_GUARDS = "itra:matching_max_grad_ratio=null,matching_warmup_ratio=0"
GPU_METHODS = [
    *(*DEFAULT, "label_smoothing", "mixup", "centre_loss", "dropout", "itra+label_smoothing", "itra+mixup"),
    *(PAIRING_ALONE, NO_GUARDS),
]
WHOLE = "matching_full_weight_rows=12000"  # enough for 60,000 rows in five epochs
WHOLE_WEIGHT = f"itra:{WHOLE}"
UP_TO_1000 = "itra:matching_full_weight_rows=1000"  # an older default
NEARLY_WHOLE_WEIGHT = f"itra:matching_weight={10_000 / 10_003},{WHOLE}"  # of all of BANKING77 under an older default
ABLATIONS = {  # a change, the method that has it, and what it is compared with
    "no cap": ("itra:matching_max_grad_ratio=null", "itra"),
    "no ramp": ("itra:matching_warmup_ratio=0", "itra"),
    "neither cap nor ramp": (NO_GUARDS, "itra"),
    "random pairing": (RANDOM_PAIRING, "itra"),
    "unbiased estimator": ("itra:unbiased=true", "itra"),
    "one bandwidth": ("itra:num_bandwidths=1", "itra"),
    "one half supervised": ("itra:one_half=true", "itra"),
    "class pairing alone": (PAIRING_ALONE, "itra"),
    "whole weight for many rows": (WHOLE_WEIGHT, "itra"),
    "whole weight but for 0.03 %": (NEARLY_WHOLE_WEIGHT, "itra"),
    "a third of the weight": (f"itra:matching_weight={1 / 3},{WHOLE}", "itra"),
    "a sixth of the weight": (f"itra:matching_weight={1 / 6},{WHOLE}", "itra"),
    "whole weight up to 1,000 rows for every epoch": (UP_TO_1000, "itra"),
    "whole weight up to 500": ("itra:matching_full_weight_rows=500", "itra"),
    "two ranks": (ON_RANKS, "itra"),
    "two ranks, each by itself": (f"{ON_RANKS},gather_features=false", ON_RANKS),
}
ABLATED = list(ABLATIONS.values())
ABLATION_METHODS = [method for method, _ in ABLATED]
FOR_FEW_ROWS = [method for method in ABLATION_METHODS if "matching_full_weight_rows" not in method]
FOR_MANY_ROWS = [method for method in ABLATION_METHODS if method not in (*FOR_FEW_ROWS, NEARLY_WHOLE_WEIGHT)]
ABLATIONS_OF = {  # the ablations that a task is run with
    "digits-300/cnn": FOR_FEW_ROWS,
    "fashion_mnist-1000/cnn": FOR_FEW_ROWS,
    "banking77-5shot/minilm-last2": FOR_FEW_ROWS,
    "fashion_mnist-all/cnn": FOR_MANY_ROWS,
    "fashion_mnist-5000/cnn": [UP_TO_1000],
    "sst2-all/minilm-last2": [WHOLE_WEIGHT, UP_TO_1000],
    "banking77-all/minilm-last2": [NEARLY_WHOLE_WEIGHT, UP_TO_1000],
    "banking77-all/minilm": [UP_TO_1000],
    "sst2-all/minilm": [UP_TO_1000],
    "sst2-all/minilm-lora": [UP_TO_1000],
}

# Which method should beat which. The first family answers the main question, so it is corrected by itself.
MAIN = [("itra", "trainer")]
OTHERS = [
    *((method, "trainer") for method in (*RIVALS, *FORMS)),
    *(("itra+label_smoothing", "label_smoothing"), ("itra+dropout", "dropout"), ("itra+mixup", "mixup")),
]

WITHOUT_TUNED_FORMS = ("fashion_mnist-300/cnn", "fashion_mnist-5000/cnn", "banking77-5shot/minilm-last2")
WITH_ALL = ("digits-100/cnn", "digits-300/cnn", "fashion_mnist-1000/cnn", "digits-100/vit")
WITHOUT_FORMS = ["digits-300/vit", "fashion_mnist-1000/vit"]
WITH_TWO_RIVALS = ("banking77-10shot/minilm-last2", "sst2-200/minilm-last2", "sst2-1000/minilm-last2")
# The methods that a task is run with, beside its ablations; all others are run with the defaults and Trainer alone.
METHODS_OF = {
    **dict.fromkeys(WITH_ALL, METHODS_REPORTED),
    **{task: [*DEFAULT, *RIVALS, *ON_TOP, *FORMS[:2]] for task in WITHOUT_TUNED_FORMS},
    **{task: [*DEFAULT, *RIVALS, *ON_TOP] for task in WITHOUT_FORMS},
    **{task: [*DEFAULT, "label_smoothing", "dropout", *ON_TOP] for task in WITH_TWO_RIVALS},
    **dict.fromkeys(GPU_TASKS, GPU_METHODS),
}
# Once more on seeds that nothing else has: few images, and the two-class text that had lost most.
FRESH_SEEDS = list(range(200, 210))
FRESH_TASKS = [*LOW_DATA_IMAGES, "sst2-200/minilm"]
# Tasks of long runs whose learning rate is chosen on one seed, and on two; all others have three. Knobs on texts have
# one seed, but for that of label smoothing.
TUNED_ON_ONE = [
    *("fashion_mnist-all/cnn", "fashion_mnist-all/resnet", "fashion_mnist-all/vit"),
    *("banking77-10shot/minilm-last2", "banking77-10shot/minilm", "sst2-1000/minilm"),
    *("banking77-10shot/minilm-lora", "sst2-200/minilm-lora", "sst2-1000/minilm-lora"),
    *("banking77-all/minilm-last2", "banking77-all/minilm", "banking77-all/minilm-lora"),
    *("sst2-all/minilm-last2", "sst2-all/minilm", "sst2-all/minilm-lora"),
]
TUNED_ON_TWO = [
    *("fashion_mnist-300/resnet", "fashion_mnist-300/vit", "fashion_mnist-1000/resnet"),
    *("fashion_mnist-5000/resnet", "fashion_mnist-5000/vit"),
    *("sst2-200/minilm-last2", "sst2-1000/minilm-last2", "sst2-200/minilm"),
    *("banking77-5shot/minilm", "banking77-5shot/minilm-lora"),
]
KNOB_ON_THREE = ("banking77-5shot/minilm-last2", "label_smoothing")

# Where the paper's claims are measured, with Trainer and the defaults.
CLAIM_TASKS = ["fashion_mnist-5000/cnn", "digits-300/cnn", "banking77-10shot/minilm-last2"]
CLAIM_SEEDS = list(range(5))

QUICK_TASKS = ["digits-100/cnn", "digits-300/cnn"]
QUICK_METHODS = [*DEFAULT, "half_batch", "label_smoothing", "dropout", *ON_TOP]


def reported_seeds(task: str, method: str) -> list[int]:
    """The reported seeds: ten, or five where runs are long: on BANKING77, on all rows, of rivals on texts. The main
    question has 20 on digits with the small CNN, whose test set is small, 12 on the fewest reviews, which differ most
    from seed to seed, and ten with the last layers on all of them, whose runs are the shortest there."""
    if task in GPU_TASKS:
        return list(range({"cifar10-5000/resnet18": 6, "cifar10-all/resnet18": 3}.get(task, 10)))
    if (task, method) in [("sst2-all/minilm-last2", default) for default in DEFAULT]:
        return list(range(10))
    if task.startswith("banking77") or "-all/" in task or (task.startswith("sst2") and method not in DEFAULT):
        return list(range(5))
    if task.startswith("sst2-200/"):
        return list(range(12))
    is_main = method in DEFAULT or method.startswith(ON_RANKS)
    return list(range(20 if is_main and task.startswith("digits") and task.endswith("/cnn") else 10))


def tuning_seeds(task: str, method: str) -> list[int]:
    """The seeds of the validation rows that settings are chosen on; they are never reported."""
    if task in GPU_TASKS:
        return [100, 101]
    is_knob_of_texts = task in TEXTS and method != "trainer" and (task, method) != KNOB_ON_THREE
    number = 1 if task in TUNED_ON_ONE or is_knob_of_texts else 2 if task in TUNED_ON_TWO else 3
    return [100, 101, 102][:number]
