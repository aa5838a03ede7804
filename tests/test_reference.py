"""The authors' numbers are reproduced, and a checkpoint that is not theirs does no harm.

Run as a script, this file prints how far the Keras backend of the environment is from the numbers
of tests/data, as JSON.
"""

import functools
import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops
from marks import slow_case

from ddunet_keras.files import DataError
from ddunet_keras.losses import SegmentationLoss
from ddunet_keras.model import VARIANTS, DDUNet
from ddunet_keras.reference import load_paddle_weights, load_state, paddle_name, read_pdparams

DATA = Path(__file__).parent / "data"
# The authors' float32 numbers lie up to 0.8e-4 from float64's (full_c8), and a processor's own
# rounding may come on top (0.4e-4 with AVX-512): all of theirs are compared with float64.
TOLERANCE = 1e-4
AUXILIARY = (1.0, 0.4, 0.2)

FILES = ("baseline_c2", "baseline_c8", "dmsc_c2", "dmsc_c8") + tuple(
    f"full_c{width}" for width in (2, 4, 8, 16)
)
# those that a change of a block or a width would move; the rest are slow tests
FIRST = ("dmsc_c8", "full_c8")


def to_nhwc(array):
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


def state_of(numbers):
    return {k.removeprefix("state/"): numbers[k] for k in numbers.files if k.startswith("state/")}


def model_of(path, **kwargs):
    """The untrained network whose numbers an .npz file holds, and the file."""
    variant, width = path.stem.split("_c")
    numbers = np.load(path)
    shape = to_nhwc(numbers["image_nchw"]).shape[1:]
    kwargs = {"upsampling": "align_corners", **kwargs}
    return DDUNet(shape, int(width), variant, **kwargs), numbers


def deviation(value, expected):
    """Largest difference over the expected values' range."""
    return float(np.abs(ops.convert_to_numpy(value) - expected).max() / np.ptp(expected))


def deviations(model, numbers):
    """{"logits_i": over their range, "loss": relative}"""
    outputs = model(to_nhwc(numbers["image_nchw"]), training=False)
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    found = {
        f"logits_{i}": deviation(logits, to_nhwc(numbers[f"logits_{i}_nchw"]))
        for i, logits in enumerate(outputs)
    }
    losses = [SegmentationLoss(saturating=True) for _ in outputs]
    model.compile("sgd", losses, loss_weights=list(AUXILIARY[: len(outputs)]))
    loss = float(model.compute_loss(y=to_nhwc(numbers["mask_nchw"]), y_pred=outputs))
    return {**found, "loss": abs(loss / float(numbers["loss"]) - 1)}


def all_deviations():
    found = {}
    for variant in VARIANTS:
        model, numbers = model_of(DATA / f"{variant}_c2.npz")
        load_state(model, state_of(numbers))
        found[variant] = deviations(model, numbers)
    return found


def activation_layer(name, variant):
    """Our layer's name for one of the authors' blocks."""
    if name == "in_conv":
        return "stem"
    block, number = name.rsplit("_", 1)
    if block == "double_conv":
        return f"decoder_{int(number) - 5}_{1 if variant == 'baseline' else 2}"
    return f"encoder_{number}"


# --- the numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_tensorflow_reproduces_the_authors_numbers(variant):
    model, numbers = model_of(DATA / f"{variant}_c2.npz")
    before = deviations(model, numbers)
    assert max(before.values()) > 0.1  # it is the weights that make them agree
    load_state(model, state_of(numbers))
    found = deviations(model, numbers)
    assert len(found) == (4 if variant == "full" else 2)
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend", [name for name in ("jax", "torch") if importlib.util.find_spec(name)]
)
def test_another_backend_reproduces_the_authors_numbers(backend):
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join([str(DATA.parents[1]), os.environ.get("PYTHONPATH", "")]),
        # compiling is most of the work: for speed here, not of what is compiled
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "JAX_PLATFORMS": "cpu",
    }
    result = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found.pop("backend") == backend and set(found) == set(VARIANTS)
    assert max(value for numbers in found.values() for value in numbers.values()) < TOLERANCE, found


@pytest.mark.shared
@pytest.mark.parametrize(
    "name",
    [*FIRST, *(slow_case(n) for n in FILES if n not in FIRST)],
)
def test_every_published_number(shared, name):
    model, numbers = model_of(shared / "reference" / f"{name}.npz", dtype="float64")
    load_state(model, state_of(numbers))
    found = deviations(model, numbers)
    image = to_nhwc(numbers["image_nchw"])
    blocks = [key.removeprefix("act/") for key in numbers.files if key.startswith("act/")]
    outputs = [model.get_layer(activation_layer(b, model.variant)).output for b in blocks]
    if outputs:
        for block, output in zip(blocks, keras.Model(model.input, outputs)(image), strict=True):
            found[block] = deviation(output, to_nhwc(numbers[f"act/{block}"]))
    assert len(blocks) >= (0 if name.endswith("c2") else 3)
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.shared
@pytest.mark.parametrize("width", [slow_case(2), 4, slow_case(8)])
def test_every_published_checkpoint(shared, width):
    model, numbers = model_of(shared / "reference" / f"full_c{width}.npz", dtype="float64")
    load_paddle_weights(model, shared / "reference" / f"full_c{width}.pdparams")
    assert max(deviations(model, numbers).values()) < TOLERANCE


@pytest.mark.shared
def test_no_published_file_is_passed_over(shared):
    found = sorted(path.stem for path in (shared / "reference").glob("*_c*.npz"))
    assert found == sorted(FILES)


# --- checkpoints ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def numbers():
    return np.load(DATA / "full_c2.npz")


@pytest.fixture(scope="module")
def model(numbers):
    return model_of(DATA / "full_c2.npz")[0]


@pytest.fixture
def state(numbers):
    return state_of(numbers)


def write(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


# the names are what differs, and `test_tensorflow_reproduces_the_authors_numbers` has them all
@pytest.mark.parametrize(
    "variant",
    ["full", *(slow_case(v) for v in VARIANTS if v != "full")],
)
def test_a_checkpoint_gives_the_authors_logits(tmp_path, variant):
    model, numbers = model_of(DATA / f"{variant}_c2.npz")
    load_paddle_weights(model, write(tmp_path / "a.pdparams", state_of(numbers)))
    assert max(deviations(model, numbers).values()) < TOLERANCE


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_of_any_float_type_order_and_rank_are_read(tmp_path, protocol):
    rng = np.random.default_rng(0)
    state = {
        "float16": rng.normal(size=(2, 3)).astype("float16"),
        "float64": rng.normal(size=(4,)),
        "big endian": rng.normal(size=(3, 2)).astype(">f4"),
        "fortran": np.asfortranarray(rng.normal(size=(2, 3, 4)).astype("float32")),
        "strided": rng.normal(size=(6, 4)).astype("float32")[::2, ::-1],
        "scalar": np.array(2.5, "float32"),
        "empty": np.zeros((0, 3), "float32"),
    }
    read = read_pdparams(write(tmp_path / "a.pdparams", state, protocol))
    assert list(read) == list(state)
    for name, array in state.items():
        assert read[name].dtype == array.dtype.newbyteorder("=") and read[name].flags.writeable
        assert np.array_equal(read[name], array) and read[name].shape == array.shape


def test_numpy_1_named_its_modules_otherwise(tmp_path):
    array = np.arange(3, dtype="float32")
    content = pickle.dumps({"x": array}, protocol=3)
    content = content.replace(b"numpy._core", b"numpy.core")
    (tmp_path / "a.pdparams").write_bytes(content)
    assert np.array_equal(read_pdparams(tmp_path / "a.pdparams")["x"], array)


def test_paddles_own_table_of_names_is_passed_over(tmp_path, state):
    state["StructuredToParameterName@@"] = {name: f"param_{i}" for i, name in enumerate(state)}
    read = read_pdparams(write(tmp_path / "a.pdparams", state))
    assert set(read) == set(state) - {"StructuredToParameterName@@"}


def test_heads_that_only_train_are_passed_over(tmp_path, state):
    model, numbers = model_of(DATA / "full_c2.npz", deep_supervision=False)
    load_paddle_weights(model, write(tmp_path / "a.pdparams", state))
    logits = model(to_nhwc(numbers["image_nchw"]))
    assert deviation(logits, to_nhwc(numbers["logits_0_nchw"])) < TOLERANCE


def snapshot(model):
    return [ops.convert_to_numpy(v).copy() for v in model.variables]


@functools.lru_cache(maxsize=4)
def first_snapshot(model):
    """Of a model that is given only what it refuses: taken once, as it takes a while."""
    return snapshot(model)


def assert_refused(model, path, *parts):
    """One line that names the file and what is wrong; the model keeps its weights."""
    before = first_snapshot(model)
    with pytest.raises(DataError) as error:
        load_paddle_weights(model, path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert all(part in message for part in parts), message
    assert all(np.array_equal(a, b) for a, b in zip(before, snapshot(model), strict=True))


@pytest.mark.parametrize(
    "name",
    [
        "in_conv.conv2d.weight",
        "dmsc_3.dilated_convs.2.1._variance",
        "double_conv_6.conv1.conv.2.bias",
        "classifier3.bias_layers.2.bias",
    ],
)
def test_a_missing_an_extra_and_a_misshapen_parameter_are_named(model, tmp_path, state, name):
    path, array = tmp_path / "a.pdparams", state.pop(name)
    assert_refused(model, write(path, state), f"missing {name}")
    state[name] = np.concatenate([array, array])
    assert_refused(model, write(path, state), f"{name} has shape {state[name].shape}")
    state[name] = array[None]
    assert_refused(model, write(path, state), f"{name} has shape {state[name].shape}")
    state[name], state["more.weight"] = array, array
    assert_refused(model, write(path, state), f"unexpected more.weight {array.shape}")


def test_every_one_of_a_few_problems_is_named(model, tmp_path, state):
    state["new"] = state.pop("in_conv.bn.bias")
    del state["in_conv.bn.weight"]
    path = write(tmp_path / "a.pdparams", state)
    assert_refused(model, path, "missing in_conv.bn.bias", "missing in_conv.bn.weight", "new (2,)")


@pytest.mark.parametrize(
    "kwargs", [{"base_channels": 4}, {"variant": "dmsc"}, {"num_classes": 3}], ids=str
)
def test_another_networks_checkpoint_is_refused_by_name(tmp_path, state, kwargs):
    model = DDUNet(**{"image_shape": (32, 48, 3), "base_channels": 2, **kwargs})
    what = next(f"{k}={v!r}" for k, v in kwargs.items())
    assert_refused(model, write(tmp_path / "a.pdparams", state), "does not fit DDUNet(", what)


def test_our_names_and_theirs_are_one_to_one(model, state):
    paths = [v.path.removeprefix("ddunet/") for v in model.variables]
    assert sorted(paddle_name(path) for path in paths) == sorted(state)
    assert paddle_name("encoder_2/residual/pointwise/kernel") == "dmsc_2.conv.conv.1.weight"


# --- files that are no checkpoint ----------------------------------------------------------------


def test_a_missing_file_and_a_folder(model, tmp_path):
    assert_refused(model, tmp_path / "no.pdparams", "no such file")
    assert_refused(model, tmp_path, "no such file")


@pytest.mark.parametrize(
    "content", [b"", b"\x80", b"no pickle", bytes(range(256)), b"PK\x03\x04" + bytes(100)]
)
def test_a_file_of_other_bytes(model, tmp_path, content):
    path = tmp_path / "a.pdparams"
    path.write_bytes(content)
    assert_refused(model, path)


def test_random_bytes(tmp_path):
    path, rng = tmp_path / "a.pdparams", np.random.default_rng(0)
    for length in rng.integers(1, 400, 200):
        path.write_bytes(rng.bytes(length))
        with pytest.raises(DataError, match=r"not a checkpoint|holds a"):
            read_pdparams(path)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.999])
def test_a_truncated_file(model, tmp_path, state, share):
    path = write(tmp_path / "a.pdparams", state)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert_refused(model, path, "not a checkpoint of NumPy arrays")


def test_a_damaged_file_is_read_or_refused(tmp_path, state):
    path = write(tmp_path / "a.pdparams", {k: state[k] for k in list(state)[:6]})
    content, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.integers(len(damaged))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert all(a.dtype.kind == "f" for a in read_pdparams(path).values())
        except DataError:
            refused += 1
    assert 0 < refused < 300


def test_a_file_that_is_far_too_large(tmp_path):
    path = tmp_path / "a.pdparams"
    with open(path, "wb") as file:
        file.truncate(500_000_001)
    with pytest.raises(DataError, match="500,000,001 bytes"):
        read_pdparams(path)


@pytest.mark.parametrize("content", [[np.zeros(3)], np.zeros(3), 3, "text", None, (), {1, 2}])
def test_a_pickle_that_is_no_dict(model, tmp_path, content):
    assert_refused(model, write(tmp_path / "a.pdparams", content))


@pytest.mark.parametrize(
    "value",
    [
        np.arange(3),
        np.ones(3, bool),
        np.ones(3, "complex64"),
        np.array(["a"]),
        np.array([1.0, None], object),
        np.zeros(2, [("a", "f4"), ("b", "f4")]),
        np.array("2020-01-01", "datetime64[s]"),
        np.float32(3),
        np.dtype("float32"),
        [1.0, 2.0],
        3.0,
        "text",
        {"nested": np.zeros(3, "float32")},
        None,
    ],
    ids=repr,
)
def test_a_value_that_is_no_array_of_floats(model, tmp_path, state, value):
    state["in_conv.bn.bias"] = value
    assert_refused(model, write(tmp_path / "a.pdparams", state))


def test_an_entry_without_a_name(model, tmp_path, state):
    assert_refused(model, write(tmp_path / "a.pdparams", {**state, 3: np.zeros(2)}), "a int stands")


# --- files that mean harm ------------------------------------------------------------------------


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def harmful(marker):
    """Calls that would leave a file behind."""
    return {
        "os.system": Call(os.system, f"touch {marker}"),
        "eval": Call(eval, f"open({str(marker)!r}, 'w').close()"),
        "subprocess": Call(subprocess.check_call, ["touch", str(marker)]),
        "numpy.save": Call(np.save, str(marker), 3),
        "getattr": Call(getattr, "text", "upper"),
    }


@pytest.mark.parametrize("nest", ["bare", "in a dict", "in an array", "in a table", "as a name"])
@pytest.mark.parametrize("name", list(harmful("")))
def test_a_pickle_that_calls_a_function_calls_none(model, tmp_path, state, name, nest):
    marker = tmp_path / "marker"
    call = harmful(marker)[name]
    path = tmp_path / "a.pdparams"
    content = {
        "bare": call,
        "in a dict": {**state, "in_conv.bn.bias": call},
        "in an array": {**state, "in_conv.bn.bias": np.array([call, 1.0], object)},
        "in a table": {**state, "StructuredToParameterName@@": {"a": call}},
        "as a name": {call: np.zeros(2, "float32")},
    }[nest]
    assert_refused(model, write(path, content), "it asks for ", "only NumPy arrays are admitted")
    assert not [p for p in tmp_path.iterdir() if p != path]
    # the same file harms who reads it unguarded: the test is worth something
    if name != "getattr":
        pickle.loads(path.read_bytes())
        assert len(list(tmp_path.iterdir())) == 2


def pickled_global(module, name):
    return f"c{module}\n{name}\n".encode()


@pytest.mark.parametrize(
    "module, name",
    [
        ("posix", "system"),
        ("numpy", "ndarray.__class__"),
        ("numpy", "core"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "_reconstruct.__self__"),
        ("numpy.testing._private.utils", "runstring"),
        ("numpy.f2py.crackfortran", "myeval"),
        ("numpy.core.multiarray\0", "_reconstruct"),
        ("builtins", "dict"),
        ("_codecs", "encode"),
        ("copyreg", "_reconstructor"),
        ("ddunet_keras.reference", "_Array"),
    ],
)
def test_only_what_an_array_needs_can_be_asked_for(tmp_path, module, name):
    path = tmp_path / "a.pdparams"
    path.write_bytes(b"\x80\x04" + pickled_global(module, name) + b".")
    with pytest.raises(DataError, match="it asks for"):
        read_pdparams(path)


@pytest.mark.slow
def test_an_array_type_of_forged_memory_is_not_built(tmp_path):
    """NumPy's own `dtype` believes a pickled state that hides pointers to Python objects in an
    array; the first look at one crashes the process or runs what the pointers lead to."""
    object_type = pickled_global("numpy", "dtype") + b"(VO\nI00\nI01\ntR"
    forged = pickled_global("numpy", "dtype") + b"(VV8\nI00\nI01\ntR"
    forged += b"(I3\nV|\nN(Va\nt(dVa\n(" + object_type + b"I0\ntsI8\nI8\nI0\ntb"
    array = pickled_global("numpy.core.multiarray", "_reconstruct")
    array += b"(" + pickled_global("numpy", "ndarray") + b"(I0\ntC\x01btR"
    array += b"(I1\n(I1\nt" + forged + b"I00\nC\x08AAAAAAAAtb"
    path = tmp_path / "a.pdparams"
    path.write_bytes(b"\x80\x04}(Vx\n" + array + b"u.")
    script = f"""
from ddunet_keras.reference import DataError, read_pdparams
try:
    print(read_pdparams({str(path)!r}))
except DataError as error:
    print("refused:", error)
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(DATA.parents[1])},
    )
    assert result.returncode == 0 and result.stdout.startswith("refused:"), result


@pytest.mark.parametrize(
    "state",
    [
        b"N",
        b"(I1\nt",
        b"(I1\n(I5\ntNI00\nC\x04AAAAt",
        b"(I1\n(I5\nt%sI00\nC\x04AAAAt",  # four bytes for five numbers
        b"(I1\n(I99999999999\nt%sI00\nC\x04AAAAt",
        b"(I1\n(I1\nt%sI00\nNt",
        b"(I1\n(I1\nt%sI00\n]t",
        b"}(V__class__\nI1\nu",
    ],
)
def test_a_forged_array_is_refused(tmp_path, state):
    float32 = pickled_global("numpy", "dtype") + b"(Vf4\nI00\nI01\ntR"
    content = b"\x80\x04}(Vx\n" + pickled_global("numpy.core.multiarray", "_reconstruct")
    content += b"(" + pickled_global("numpy", "ndarray") + b"(I0\ntC\x01btR"
    path = tmp_path / "a.pdparams"
    path.write_bytes(content + state.replace(b"%s", float32) + b"bu.")
    with pytest.raises(DataError, match=r"'x'|not a checkpoint"):
        read_pdparams(path)
    # nothing that a forged file changes outlives it
    read = read_pdparams(write(path, {"x": np.ones(2, "float32")}))
    assert np.array_equal(read["x"], [1, 1])


if __name__ == "__main__":
    print(json.dumps({"backend": keras.backend.backend(), **all_deviations()}))
