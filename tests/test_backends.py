"""One training step of the whole network gives the same numbers on every Keras backend."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

NUMBERS = Path(__file__).parent / "data" / "full_c2.npz"
STEP = """
import json, sys
import numpy as np
from ddunet_keras import DDUNet
import keras
from ddunet_keras.losses import MeanIoU, PixelAccuracy, SegmentationLoss
from ddunet_keras.reference import load_state

numbers = np.load(sys.argv[1])
images = numbers["image_nchw"].transpose(0, 2, 3, 1)
labels = numbers["mask_nchw"][:, 0].astype("uint8")
labels[0, :4] = 255
state = {name[6:]: numbers[name] for name in numbers.files if name.startswith("state/")}
model = DDUNet(images.shape[1:], base_channels=2)
load_state(model, state)
model.compile(
    optimizer=keras.optimizers.SGD(1e-3, global_clipnorm=1.0),
    loss=[SegmentationLoss(iou_weight=0.5) for _ in model.outputs],
    loss_weights=[1, 0.5, 0.2],
    metrics=[PixelAccuracy(), MeanIoU()],
)
history = model.fit(images, labels, batch_size=2, epochs=1, shuffle=False, verbose=0).history
values = {v.path: keras.ops.convert_to_numpy(v.value).ravel().tolist() for v in model.variables}
print(json.dumps({"history": history, "variables": values}))
"""


def step(backend):
    environment = {**os.environ, "KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": "-1"}
    result = subprocess.run(
        [sys.executable, "-c", STEP, str(NUMBERS)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def on_tensorflow():
    return step("tensorflow")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_training_step_is_the_same(backend, on_tensorflow):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed; `.ci/run` installs it")
    other = step(backend)
    assert other["history"].keys() == on_tensorflow["history"].keys()
    for name, (value,) in on_tensorflow["history"].items():
        assert other["history"][name][0] == pytest.approx(value, rel=1e-4), name
    for path, values in on_tensorflow["variables"].items():
        expected = np.array(values)
        np.testing.assert_allclose(
            other["variables"][path],
            expected,
            atol=1e-4 * max(1, np.abs(expected).max()),
            err_msg=path,
        )
