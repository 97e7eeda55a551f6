"""Settings that make a run of the digits take a second or two."""

QUICK = [
    "model=resnet20",
    "model.build.depth=8",
    "dataset.build.image_size=8",
    "calibration.num_images=32",
    "finalist.calibration_images=32",
    "finetune.epochs=0",
    "latency.repetitions=2",
    "latency.warmup=1",
    "space.divisor=4",
    "recover=bn",
    "recover@finalist.recover=bn",
]
