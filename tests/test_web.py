"""The page in tflite/web, in a headless Chromium: what it says is what Python says."""

import base64
import functools
import http.server
import io
import json
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ddunet_keras as dd
from ddunet_keras.files import DataError
from ddunet_keras.images import resize_image
from ddunet_keras.presets import preset_file
from ddunet_keras.sky.quality import find_flaw

WEB = Path(__file__).parents[1] / "tflite" / "web"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 120_000
"""Milliseconds that a busy machine may take for one photo."""

FROM_BASE64 = "((text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)))"
"""JavaScript: bytes from base64."""

SAME_PIXELS = 0.995
"""Least share of the mask's pixels in which page and Python agree."""


@pytest.fixture(scope="module")
def assembler():
    """The module tflite/web/assemble.py."""
    sys.path.insert(0, str(WEB))
    try:
        import assemble
    finally:
        sys.path.remove(str(WEB))
    return assemble


@pytest.fixture(scope="module")
def site(assembler, tmp_path_factory):
    """The folder with the page."""
    if shutil.which("npm") is None:
        pytest.skip("npm (Node.js) is not installed")
    folder = tmp_path_factory.mktemp("web") / "site"
    try:
        assembler.assemble(folder)
    except DataError as error:
        if not str(error).startswith("npm cannot install"):
            raise
        pytest.skip(str(error))
    return folder


class CountingHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without a word, and counts."""

    def log_message(self, *arguments):
        self.server.requests.append(self.requestline)


@pytest.fixture(scope="module")
def serve():
    """Serves a folder on loopback: returns the server, whose `address` is its URL."""
    servers = []

    def start(folder):
        handler = functools.partial(CountingHandler, directory=folder)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.requests = []
        server.address = f"http://127.0.0.1:{server.server_port}/"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if executable is None:
        pytest.skip("Chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        # as root, Chromium has no sandbox
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


class Page:
    """The page as a user has it before them."""

    def __init__(self, page, server):
        self.page = page
        self.server = server
        self.errors = []
        page.set_default_timeout(PATIENCE)
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(server.address)
        self.wait()

    def _note(self, message):
        if message.type == "error":
            self.errors.append(message.text)

    def wait(self):
        self.page.wait_for_selector("main[aria-busy=false]", state="attached")

    @property
    def status(self):
        return self.page.inner_text("#status")

    def choose(self, path, source="#file"):
        """Chooses a file and waits for the answer."""
        self.page.evaluate("document.getElementById('page').setAttribute('aria-busy', true)")
        self.page.set_input_files(source, path)
        self.wait()
        return self

    def text(self, name):
        return self.page.inner_text(f"#{name}") if self.page.is_visible(f"#{name}") else None

    def shown_mask(self):
        """What lies over the photo: 255 where it is tinted, 128 where darkened, 0 elsewhere."""
        url = self.page.evaluate("document.getElementById('mask').toDataURL()")
        picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
        red, _, _, alpha = np.moveaxis(np.asarray(picture), -1, 0)
        return np.where(alpha == 0, 0, np.where(red > 0, 255, 128))

    def call(self, function, cases):
        """What a function of the page's script gives, case by case; bytes come as a Uint8Array."""
        return self.page.evaluate(
            f"""async ([name, cases]) => {{
                const given = (value) => typeof value === "string" ? {FROM_BASE64}(value) : value;
                const script = await import("./clouds.js");
                return cases.map((values) => script[name](...values.map(given)));
            }}""",
            [function, [list(map(sendable, case)) for case in cases]],
        )


def sendable(value):
    """A value for the page; as base64, bytes go there far faster than as a list."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


@pytest.fixture(scope="module")
def module_page(browser, site, serve):
    """One page for all tests that can share it: loading it takes longer than they do."""
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    yield Page(context.new_page(), serve(site))
    context.close()


@pytest.fixture
def page(module_page):
    yield module_page
    assert module_page.errors == []


@pytest.fixture(scope="module")
def segmenter():
    return dd.Segmenter()


def assert_like_python(page, path, segmenter):
    photo = dd.read_photo(path)
    # the page does not recognize what shows no sky
    expected = segmenter.segment(photo.image, horizon=photo.valid, force=True)
    assert page.status == path.name
    assert np.mean(page.shown_mask() == expected.mask) >= SAME_PIXELS
    percent = float(page.text("percent").removesuffix(" %"))
    assert percent == pytest.approx(expected.cloud_cover.percent, abs=0.3)
    assert page.text("okta") == f"{expected.cloud_cover.okta} okta"
    assert page.text("milliseconds").endswith(" ms")


def save_sky(path, seed, size, **settings):
    """Where the network is undecided, other kernels round otherwise; these tests take seeds of
    which it is sure, so that differences come from the page."""
    Image.fromarray(dd.synthetic_sky(seed, size)[0]).save(path, **settings)
    return path


# --- what it says


def test_it_finds_the_clouds_that_python_finds(page, segmenter, tmp_path):
    for path in (
        save_sky(tmp_path / "day.png", 1, (300, 400)),
        save_sky(tmp_path / "camera.jpg", 2, (521, 733), quality=85),
        save_sky(tmp_path / "tall.jpg", 19, (640, 90)),
        save_sky(tmp_path / "small.png", 12, (60, 75)),
    ):
        assert_like_python(page.choose(path), path, segmenter)


@pytest.mark.shared
def test_it_finds_the_clouds_that_python_finds_in_real_photos(page, segmenter, shared):
    whole_sky = sorted((shared / "data" / "wsiseg-240" / "images").iterdir())[:1]
    patches = sorted((shared / "data" / "swinyseg-base" / "images").glob("*.jpg"))[:600:200]
    assert patches and whole_sky
    for path in patches + whole_sky:
        assert_like_python(page.choose(path), path, segmenter)


def test_a_photo_that_lies_on_its_side_is_turned_and_transparent_pixels_do_not_count(
    page, segmenter, tmp_path
):
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turn by 90 degrees
    save_sky(turned, 21, (200, 300), exif=exif)
    assert_like_python(page.choose(turned, "#camera"), turned, segmenter)
    assert page.shown_mask().shape == (300, 200)

    cut_out = tmp_path / "cut-out.png"
    sky = Image.fromarray(dd.synthetic_sky(22, (200, 300))[0]).convert("RGBA")
    alpha = np.full((200, 300), 255, np.uint8)
    alpha[120:, :170] = 0
    sky.putalpha(Image.fromarray(alpha))
    sky.save(cut_out)
    assert_like_python(page.choose(cut_out), cut_out, segmenter)
    assert (page.shown_mask()[120:, :170] == 128).all()


@pytest.mark.parametrize("value, reason", [(0, "black"), (255, "saturated"), (90, "flat colour")])
def test_an_unusable_photo_gets_no_number(page, tmp_path, value, reason):
    page.choose(save_sky(tmp_path / "sky.png", 1, (60, 80)))
    assert page.text("percent") is not None
    path = tmp_path / "frame.png"
    Image.new("RGB", (70, 50), (value,) * 3).save(path)
    page.choose(path)
    assert page.status == f"frame.png: cannot tell: {reason}"
    assert [page.text(name) for name in ("percent", "okta", "milliseconds")] == [None] * 3
    assert not page.shown_mask().any()


def test_the_rules_for_unusable_photos_are_those_of_python(page):
    random = np.random.default_rng(0)
    cases = []
    expected = []
    for _ in range(60):
        levels = random.choice([0, 4, 5, 16, 17, 120, 122, 249, 250, 255], 2)
        share = random.choice([0, 1e-3, 0.5])
        pixels = random.choice(levels, (1500, 3), p=[share, 1 - share]).astype(np.uint8)
        valid = random.random(1500) < 0.8
        cases.append([pixels.tobytes(), valid.tobytes()])
        expected.append(find_flaw(pixels[valid]))
    assert set(expected) == {"black", "saturated", "flat colour", None}
    assert page.call("whyUnusable", cases) == expected


@pytest.mark.parametrize("size", [(1, 1), (7, 700), (256, 96), (364, 300), (500, 301)])
def test_it_shrinks_as_predict_does(page, size):
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    height, width = 256, 128
    found = page.page.evaluate(
        f"""async ([file, height, width]) => {{
            const {{ shrink }} = await import("./clouds.js");
            const bitmap = await createImageBitmap(new Blob([{FROM_BASE64}(file)]));
            return Array.from(shrink(bitmap, height, width).pixels);
        }}""",
        [sendable(file.getvalue()), height, width],
    )
    expected = resize_image(pixels, (height, width))
    np.testing.assert_array_equal(np.reshape(found, expected.shape), expected)


def test_eighths_are_those_of_python(page):
    fractions = [0, 1e-9, 0.0625, 0.1875, 0.5, 0.9374, 0.99999, 1]
    expected = [dd.CloudCover(fraction, 1).okta for fraction in fractions]
    assert page.call("okta", [[fraction] for fraction in fractions]) == expected


# --- how it behaves


def test_a_file_that_is_no_photo_is_refused_and_the_next_one_measured(page, tmp_path):
    path = tmp_path / "text.jpg"
    path.write_text("no photo")
    assert page.choose(path).status == "text.jpg: this browser cannot read it as a photo"
    assert page.text("percent") is None
    page.choose(save_sky(tmp_path / "sky.png", 1, (60, 80)))
    assert page.text("percent") is not None


def test_a_photo_can_be_dropped_and_the_clouds_hidden(page, tmp_path):
    path = save_sky(tmp_path / "dropped.png", 1, (60, 80))
    page.page.evaluate(
        """bytes => {
            document.getElementById("page").setAttribute("aria-busy", true);
            const transfer = new DataTransfer();
            transfer.items.add(new File([Uint8Array.from(bytes)], "dropped.png"));
            const event = new DragEvent("drop", { dataTransfer: transfer, bubbles: true });
            document.body.dispatchEvent(event);
        }""",
        list(path.read_bytes()),
    )
    page.wait()
    assert page.status == "dropped.png" and page.text("percent") is not None
    assert page.page.is_visible("#mask")
    page.page.uncheck("#show")
    assert not page.page.is_visible("#mask") and page.page.is_visible("#photo")


def test_nothing_leaves_the_device(page, serve, tmp_path):
    loaded = list(page.server.requests)
    assert loaded and all(line.startswith("GET /") for line in loaded)
    page.choose(save_sky(tmp_path / "sky.jpg", 1, (60, 80)))
    assert page.text("percent") is not None
    assert page.server.requests == loaded  # measuring asks for nothing
    other = serve(tmp_path)
    blocked = page.page.evaluate(
        """async address => {
            const violated = new Promise((resolve) => {
                const note = (event) => resolve(event.effectiveDirective);
                addEventListener("securitypolicyviolation", note);
            });
            const options = { method: "POST", body: "photo", mode: "no-cors" };
            await fetch(address, options).catch(() => {});
            return violated;
        }""",
        other.address,
    )
    assert blocked == "connect-src" and other.requests == []
    assert all("Content Security Policy" in error for error in page.errors)
    page.errors.clear()


def test_it_says_what_is_missing(browser, site, serve, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(site, broken)
    (broken / "ddunet.tflite").unlink()
    context = browser.new_context()
    page = Page(context.new_page(), serve(broken))
    assert "does not work" in page.status and "ddunet.tflite: 404" in page.status
    context.close()


def test_it_fits_on_the_screen(page, tmp_path):
    usual = page.page.viewport_size
    for width in (320, 1200):
        page.page.set_viewport_size({"width": width, "height": 700})
        page.choose(save_sky(tmp_path / ("long-name" * 20 + ".png"), 1, (60, 130)))
        assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    page.page.set_viewport_size(usual)


# --- the folder


def test_the_file_with_uint8_computes_the_same(assembler, segmenter, tmp_path):
    path = tmp_path / "uint8.tflite"
    path.write_bytes(assembler.with_uint8(preset_file("ddunet_c8", "tflite").read_bytes()))
    photo = dd.synthetic_sky(1, (256, 256))[0]
    found = dd.Segmenter(path).predict_probabilities(photo)
    np.testing.assert_array_equal(found, segmenter.predict_probabilities(photo))
    with pytest.raises(DataError, match="one int8 input"):
        assembler.with_uint8(path.read_bytes())


def test_a_folder_that_exists_is_left_alone(assembler, tmp_path, capsys):
    (tmp_path / "note.txt").write_text("mine")
    assert assembler.main([str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_without_npm_it_says_so_and_leaves_nothing(assembler, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert assembler.main([str(tmp_path / "site")]) == 2
    assert "npm: not found" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_versions_are_pinned_and_the_lock_names_no_host(assembler):
    wanted = json.loads((WEB / "package.json").read_text())["dependencies"]
    text = (WEB / "package-lock.json").read_text()
    locked = json.loads(text)["packages"]
    assert {f"node_modules/{name}" for name in wanted} == set(locked) - {""}
    for name, version in wanted.items():
        assert locked[f"node_modules/{name}"]["version"] == version
    assert "http" not in text
