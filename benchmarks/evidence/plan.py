"""What is run and compared, stated before the results are known."""

SEEDS = list(range(10))
TUNING_SEEDS = [100, 101, 102]  # never reported

LOW_DATA_IMAGES = ["digits-100/cnn", "digits-300/cnn", "fashion_mnist-300/cnn", "fashion_mnist-1000/cnn", "fashion_mnist-5000/cnn"]
TASKS = LOW_DATA_IMAGES
METHODS_REPORTED = [
    *("trainer", "itra", "half_batch", "label_smoothing", "dropout", "mixup", "centre_loss", "supcon", "r_drop"),
    *("flooding", "itra_tuned", "itra_marginal", "itra_joint", "itra_marginal_tuned", "itra_joint_tuned"),
    *("itra+label_smoothing", "itra+dropout"),
]
# Each method against the one that it should beat.
COMPARISONS = [
    *((method, "trainer") for method in METHODS_REPORTED if "+" not in method and method != "trainer"),
    *(("itra+label_smoothing", "label_smoothing"), ("itra+dropout", "dropout")),
]
QUICK = (["digits-100/cnn", "digits-300/cnn"], ["trainer", "itra", "label_smoothing", "dropout", "itra+label_smoothing"], list(range(5)))
