#include "sky.h"

static int8_t centered(unsigned value) { return (int8_t)((int)value - 128); }

void sky_input_rgb888(const uint8_t *frame, size_t frame_width, size_t left, size_t top,
                      size_t width, size_t height, int8_t *input) {
  for (size_t y = 0; y < height; ++y) {
    const uint8_t *row = frame + 3 * ((top + y) * frame_width + left);
    for (size_t i = 0; i < 3 * width; ++i) *input++ = centered(row[i]);
  }
}

void sky_input_rgb565(const uint8_t *frame, int big_endian, size_t frame_width, size_t left,
                      size_t top, size_t width, size_t height, int8_t *input) {
  for (size_t y = 0; y < height; ++y) {
    const uint8_t *pixel = frame + 2 * ((top + y) * frame_width + left);
    for (size_t x = 0; x < width; ++x, pixel += 2) {
      const unsigned high = pixel[big_endian ? 0 : 1], low = pixel[big_endian ? 1 : 0];
      const unsigned red = high >> 3, green = ((high & 7u) << 3) | (low >> 5), blue = low & 31u;
      *input++ = centered((red << 3) | (red >> 2));
      *input++ = centered((green << 2) | (green >> 4));
      *input++ = centered((blue << 3) | (blue >> 2));
    }
  }
}

static void finish(sky_cover *cover) {
  const uint64_t valid = cover->valid, cloudy = cover->cloudy;
  if (valid == 0) {
    cover->permille = cover->okta = -1;
    return;
  }
  cover->permille = (int32_t)((2000 * cloudy + valid) / (2 * valid));
  cover->okta = (int32_t)((16 * cloudy + valid) / (2 * valid));
  if (cloudy > 0 && cover->okta < 1) cover->okta = 1;
  if (cloudy < valid && cover->okta > 7) cover->okta = 7;
}

void sky_segment(const int8_t *output, size_t pixels, size_t channels, int8_t threshold,
                 const uint8_t *valid, uint8_t *mask, sky_cover *cover) {
  cover->valid = cover->cloudy = 0;
  for (size_t i = 0; i < pixels; ++i, output += channels) {
    uint8_t label = 0;
    if (channels == 1) {
      label = output[0] >= threshold ? SKY_CLOUD : SKY_CLEAR;
    } else {
      for (size_t c = 1; c < channels; ++c) {
        if (output[c] > output[label]) label = (uint8_t)c;
      }
    }
    if (valid != NULL && !valid[i]) {
      mask[i] = SKY_NOT_VALID;
      continue;
    }
    mask[i] = label;
    ++cover->valid;
    cover->cloudy += label != SKY_CLEAR;
  }
  finish(cover);
}
