// Cloud cover of a photo, in the browser: the network's file runs with LiteRT.js on the CPU.
//
// It computes what `ddunet predict` computes. The photo is shrunk as Pillow shrinks it, bit by bit,
// as the browser's own way differs, and the network's answer depends on it.

import { loadAndCompile, loadLiteRt, Tensor } from "./litert/litert.js";

const MODEL = "ddunet.tflite"; // uint8 in, uint8 out: the probability of cloud in 256ths
const THRESHOLD = 0.5; // probability from which a pixel is cloud

// what a photo without information is; `ddunet_keras/sky/quality.py` has the same limits
const BLACK_LEVEL = 4; // a pixel with a channel above it has light
const DARK_LEVEL = 16; // a pixel with a channel above it is no black surrounding
const SATURATED_LEVEL = 250; // a pixel is saturated if all of its channels reach it
const FLAT_DEVIATION = 1; // largest difference from the mean in a picture of one colour
const FEW = 1 / 1000; // share of the pixels
const BRIGHT_PART = 1 / 4; // least share of bright pixels in a photo that may be saturated
const SATURATED_PART = 19 / 20; // share of the bright pixels that are saturated in such a photo
const OPAQUE = 128; // alpha from which a pixel counts; what is transparent is no sky

// values of a mask, as in the mask pictures of `ddunet predict`
const SKY = 0;
const CLOUD = 255;
const NOT_VALID = 128;

const BAND = 256; // rows of a photo that are looked at at once: phones have little memory
const FIXED_POINT_BITS = 22; // Pillow's weights for bytes are integers, 2 ** 22 stands for 1
const SHOWN_SIDE = 1280; // longest side of the picture that is shown, pixels
const TINT = [204, 0, 140, 115]; // red, green, blue, alpha: 45 % opaque
const OUTLINE = [255, 255, 255, 255];
const DARKENED = [0, 0, 0, 166]; // 35 % of the brightness is left

// --- resizing

/**
 * Weights of Pillow's BILINEAR in one direction: interpolation, or averaging when it shrinks.
 * For each new sample the first old one that it is made of, and their weights, which add up to 1.
 */
function bilinearWeights(size, newSize) {
  const scale = size / newSize;
  const reach = Math.max(scale, 1);
  const samples = [];
  for (let sample = 0; sample < newSize; sample++) {
    const center = (sample + 0.5) * scale;
    const first = Math.max(Math.trunc(center - reach + 0.5), 0);
    const end = Math.min(Math.trunc(center + reach + 0.5), size);
    const weights = new Float64Array(end - first);
    let sum = 0;
    for (let index = 0; index < weights.length; index++) {
      const distance = Math.abs((index + first - center + 0.5) / reach);
      weights[index] = Math.max(1 - distance, 0);
      sum += weights[index];
    }
    samples.push({ first, weights: weights.map((weight) => weight / sum) });
  }
  return samples;
}

/** The same with weights for bytes: integers, of which 2 ** FIXED_POINT_BITS stands for 1. */
function byteWeights(size, newSize) {
  const one = 2 ** FIXED_POINT_BITS;
  return bilinearWeights(size, newSize).map(({ first, weights }) => ({
    first,
    weights: Int32Array.from(weights, (weight) => Math.trunc(weight * one + 0.5)),
  }));
}

/**
 * One direction of a resizing of bytes.
 *
 * The value at `position` along the line that starts at `start` is `from[start + position * step]`.
 */
function resizeLine(from, start, step, samples, to, toStart, toStep) {
  const half = 2 ** (FIXED_POINT_BITS - 1);
  for (let sample = 0; sample < samples.length; sample++) {
    const { first, weights } = samples[sample];
    let sum = half;
    let position = start + first * step;
    for (let index = 0; index < weights.length; index++) {
      sum += from[position] * weights[index];
      position += step;
    }
    to[toStart + sample * toStep] = sum >> FIXED_POINT_BITS;
  }
}

/**
 * Shrinks a photo to the size of the network.
 *
 * @param {ImageBitmap} bitmap
 * @param {number} newHeight
 * @param {number} newWidth
 * @returns {{pixels: Uint8Array, opaque: Uint8Array}} RGB at the new size, black where the photo
 *   is transparent; and of each pixel of the photo, whether it is not.
 */
export function shrink(bitmap, newHeight, newWidth) {
  const { width, height } = bitmap;
  const opaque = new Uint8Array(width * height);
  const columns = byteWeights(width, newWidth);
  const narrow = new Uint8Array(height * newWidth * 3);
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = Math.min(BAND, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  for (let top = 0; top < height; top += canvas.height) {
    const rows = Math.min(canvas.height, height - top);
    context.clearRect(0, 0, width, canvas.height);
    context.drawImage(bitmap, 0, -top);
    const { data } = context.getImageData(0, 0, width, rows); // red, green, blue, alpha
    for (let pixel = 0; pixel < width * rows; pixel++) {
      if (data[4 * pixel + 3] >= OPAQUE) {
        opaque[top * width + pixel] = 1;
      } else {
        data.fill(0, 4 * pixel, 4 * pixel + 3);
      }
    }
    for (let row = 0; row < rows; row++) {
      for (let channel = 0; channel < 3; channel++) {
        const start = row * width * 4 + channel;
        const toStart = (top + row) * newWidth * 3 + channel;
        resizeLine(data, start, 4, columns, narrow, toStart, 3);
      }
    }
  }
  const lines = byteWeights(height, newHeight);
  const pixels = new Uint8Array(newHeight * newWidth * 3);
  for (let column = 0; column < newWidth * 3; column++) {
    resizeLine(narrow, column, newWidth * 3, lines, pixels, column, newWidth * 3);
  }
  return { pixels, opaque };
}

/** The nearest pixel of each pixel at another size: (newHeight * newWidth) bytes. */
function nearest(values, height, width, newHeight, newWidth) {
  const result = new Uint8Array(newHeight * newWidth);
  for (let row = 0; row < newHeight; row++) {
    const line = Math.floor(((row + 0.5) * height) / newHeight) * width;
    for (let column = 0; column < newWidth; column++) {
      const position = Math.floor(((column + 0.5) * width) / newWidth);
      result[row * newWidth + column] = values[line + position];
    }
  }
  return result;
}

// --- what the photo says

/**
 * Why a picture says nothing of the sky: a word, or null if it may say something.
 *
 * @param {Uint8Array} pixels RGB.
 * @param {Uint8Array} valid of each pixel, whether it counts.
 */
export function whyUnusable(pixels, valid) {
  let count = 0;
  let light = 0;
  let bright = 0;
  let saturated = 0;
  const sums = [0, 0, 0];
  for (let pixel = 0; pixel < valid.length; pixel++) {
    if (!valid[pixel]) continue;
    const red = pixels[3 * pixel];
    const green = pixels[3 * pixel + 1];
    const blue = pixels[3 * pixel + 2];
    const brightest = Math.max(red, green, blue);
    count += 1;
    if (brightest > BLACK_LEVEL) light += 1;
    if (brightest > DARK_LEVEL) bright += 1;
    if (Math.min(red, green, blue) >= SATURATED_LEVEL) saturated += 1;
    sums[0] += red;
    sums[1] += green;
    sums[2] += blue;
  }
  if (count === 0 || light < FEW * count) return "black";
  if (bright >= BRIGHT_PART * count && saturated >= SATURATED_PART * bright) return "saturated";
  const mean = sums.map((sum) => Math.floor(sum / count + 0.5));
  let different = 0;
  for (let pixel = 0; pixel < valid.length; pixel++) {
    if (!valid[pixel]) continue;
    let deviation = 0;
    for (let channel = 0; channel < 3; channel++) {
      const difference = Math.abs(pixels[3 * pixel + channel] - mean[channel]);
      deviation = Math.max(deviation, difference);
    }
    if (deviation > FLAT_DEVIATION) different += 1;
  }
  return different < FEW * count ? "flat colour" : null;
}

/**
 * The mask of a photo, and its cloud cover.
 *
 * @param {Uint8Array} probabilities of cloud, in 256ths, (oldHeight * oldWidth).
 * @param {Uint8Array} opaque of each pixel of the photo, (height * width), whether it counts.
 * @returns {{mask: Uint8Array, fraction: number}} SKY, CLOUD or NOT_VALID of each pixel; and the
 *   cloudy share of those that count.
 */
function findClouds(probabilities, oldHeight, oldWidth, opaque, height, width) {
  const columns = bilinearWeights(oldWidth, width);
  const wide = new Float32Array(oldHeight * width);
  for (let row = 0; row < oldHeight; row++) {
    columns.forEach(({ first, weights }, column) => {
      let sum = 0;
      for (let index = 0; index < weights.length; index++) {
        sum += (probabilities[row * oldWidth + first + index] / 256) * weights[index];
      }
      wide[row * width + column] = sum;
    });
  }
  const mask = new Uint8Array(height * width).fill(NOT_VALID);
  let valid = 0;
  let cloudy = 0;
  bilinearWeights(oldHeight, height).forEach(({ first, weights }, row) => {
    for (let column = 0; column < width; column++) {
      const pixel = row * width + column;
      if (!opaque[pixel]) continue;
      let probability = 0;
      for (let index = 0; index < weights.length; index++) {
        probability += wide[(first + index) * width + column] * weights[index];
      }
      const isCloud = probability >= THRESHOLD;
      mask[pixel] = isCloud ? CLOUD : SKY;
      valid += 1;
      cloudy += isCloud;
    }
  });
  return { mask, fraction: cloudy / valid };
}

/** Cloud cover in eighths: 0 is kept for a sky without any cloud, 8 for one without any gap. */
export function okta(fraction) {
  if (fraction === 0 || fraction === 1) return 8 * fraction;
  return Math.min(Math.max(Math.floor(8 * fraction + 0.5), 1), 7);
}

/**
 * Measures a photo.
 *
 * @returns {Promise<object>} `reason`, why it cannot be measured, or null; if it is null, `mask` at
 *   the photo's size, `fraction`, the cloudy share, and `networkTime`, milliseconds.
 */
async function measure(network, bitmap) {
  const { width, height } = bitmap;
  const [input] = network.getInputDetails();
  const [, inputHeight, inputWidth] = input.shape;
  const { pixels, opaque } = shrink(bitmap, inputHeight, inputWidth);
  const reason = whyUnusable(pixels, nearest(opaque, height, width, inputHeight, inputWidth));
  if (reason !== null) return { reason };
  const start = performance.now();
  const probabilities = await run(network, pixels, input.shape);
  const networkTime = performance.now() - start;
  const clouds = findClouds(probabilities, inputHeight, inputWidth, opaque, height, width);
  return { reason, networkTime, ...clouds };
}

/** Runs the network on RGB of its size. LiteRT.js frees no tensor by itself. */
async function run(network, pixels, shape) {
  const tensor = new Tensor(pixels, Array.from(shape));
  try {
    const [result] = await network.run(tensor);
    const values = await result.data();
    result.delete();
    return values;
  } finally {
    tensor.delete();
  }
}

async function loadNetwork() {
  // LiteRT's log goes to the console as errors otherwise, "INFO: ..." as well
  globalThis.Module = { printErr: (line) => console.debug(line) };
  await loadLiteRt("./litert/");
  const answer = await fetch(MODEL);
  if (!answer.ok) throw new Error(`${MODEL}: ${answer.status} ${answer.statusText}`);
  const bytes = new Uint8Array(await answer.arrayBuffer());
  const network = await loadAndCompile(bytes, { accelerator: "wasm" });
  // the first run takes far longer than the others, and no photo's time shall contain that
  const { shape } = network.getInputDetails()[0];
  const size = shape.reduce((product, side) => product * side);
  await run(network, new Uint8Array(size), shape);
  return network;
}

// --- the page

const element = (id) => document.getElementById(id);

function say(text) {
  element("status").textContent = text;
}

function setBusy(busy) {
  element("page").setAttribute("aria-busy", busy);
}

/** Draws photo and mask at the size in which they are shown. */
function draw(bitmap, mask) {
  const shrinking = Math.min(SHOWN_SIDE / Math.max(bitmap.width, bitmap.height), 1);
  const width = Math.max(Math.round(bitmap.width * shrinking), 1);
  const height = Math.max(Math.round(bitmap.height * shrinking), 1);
  for (const id of ["photo", "mask"]) {
    element(id).width = width;
    element(id).height = height;
  }
  element("photo").getContext("2d").drawImage(bitmap, 0, 0, width, height);
  element("toggle").hidden = mask === null;
  if (mask !== null) {
    const shown = nearest(mask, bitmap.height, bitmap.width, height, width);
    element("mask").getContext("2d").putImageData(tinted(shown, height, width), 0, 0);
  }
}

/** The picture that lies over the photo: clouds tinted and outlined, what is not valid darkened. */
function tinted(mask, height, width) {
  const picture = new ImageData(width, height);
  for (let pixel = 0; pixel < mask.length; pixel++) {
    if (mask[pixel] === SKY) continue;
    let colour = DARKENED;
    if (mask[pixel] === CLOUD) {
      const column = pixel % width;
      const besideSky =
        (column > 0 && mask[pixel - 1] === SKY) ||
        (column < width - 1 && mask[pixel + 1] === SKY) ||
        mask[pixel - width] === SKY ||
        mask[pixel + width] === SKY;
      colour = besideSky ? OUTLINE : TINT;
    }
    picture.data.set(colour, 4 * pixel);
  }
  return picture;
}

async function show(network, file) {
  setBusy(true);
  element("result").hidden = true;
  say(`Measuring ${file.name}`);
  let bitmap = null;
  try {
    // upright, and else the pixels as they are in the file
    bitmap = await createImageBitmap(file, {
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
    });
  } catch {
    say(`${file.name}: this browser cannot read it as a photo`);
  }
  if (bitmap !== null) {
    const start = performance.now();
    const { reason, mask = null, fraction, networkTime } = await measure(network, bitmap);
    const time = performance.now() - start;
    draw(bitmap, mask);
    bitmap.close();
    element("numbers").hidden = reason !== null;
    if (reason === null) {
      element("percent").textContent = `${(100 * fraction).toFixed(1)} %`;
      element("okta").textContent = `${okta(fraction)} okta`;
      element("milliseconds").textContent = `${Math.round(time)} ms`;
      element("milliseconds").title = `of which the network took ${Math.round(networkTime)} ms`;
    }
    say(reason === null ? file.name : `${file.name}: cannot tell: ${reason}`);
    element("result").hidden = false;
  }
  setBusy(false);
}

function start() {
  const network = loadNetwork();
  const ready = network.then(() => {
    say("Ready.");
    setBusy(false);
  });
  // photos are measured one after another, the first as soon as the network is there
  let last = ready.catch((error) => fail("It does not work in this browser", error));
  const take = (files) => {
    if (files.length === 0) return;
    const [file] = files;
    const showFile = async () => show(await network, file);
    last = last.then(showFile).catch((error) => fail(file.name, error));
  };
  for (const id of ["file", "camera"]) {
    element(id).addEventListener("change", (event) => {
      take([...event.target.files]);
      event.target.value = ""; // the same photo may be chosen again
    });
  }
  element("show").addEventListener("change", (event) => {
    element("mask").hidden = !event.target.checked;
  });
  const choice = element("choice");
  addEventListener("dragover", (event) => {
    event.preventDefault();
    choice.classList.add("over");
  });
  addEventListener("dragleave", () => choice.classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    choice.classList.remove("over");
    take([...event.dataTransfer.files]);
  });
}

function fail(what, error) {
  say(`${what}: ${error?.message ?? error}`);
  setBusy(false);
}

start();
