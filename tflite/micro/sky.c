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

/* Limits on pixel values, 0 to 255, and on shares of the valid pixels; the same as in
   ddunet_keras/sky/quality.py. */
enum {
  BLACK_LEVEL = 4,      /* a pixel above it has light */
  DARK_LEVEL = 16,      /* a pixel above it is no black surrounding */
  SATURATED_LEVEL = 250, /* a pixel is saturated if all of its channels reach it */
  FLAT_DEVIATION = 1,   /* largest difference from the mean in a picture of one colour */
  FEW = 1000,           /* "few" is fewer than one pixel in so many */
  NOT_SATURATED = 20,   /* of the bright pixels, at most one in so many is not saturated */
  BRIGHT_PART = 4       /* and at least one pixel in so many is bright */
};

static int is_valid(const uint8_t *valid, size_t i) { return valid == NULL || valid[i] != 0; }

/* How many valid pixels differ from the mean colour. */
static uint32_t not_of_mean_colour(const int8_t *input, size_t pixels, const uint8_t *valid,
                                   uint32_t count) {
  uint64_t sum[3] = {0, 0, 0};
  int mean[3];
  uint32_t differ = 0;
  for (size_t i = 0; i < pixels; ++i) {
    if (!is_valid(valid, i)) continue;
    for (size_t c = 0; c < 3; ++c) sum[c] += (uint64_t)(input[3 * i + c] + 128);
  }
  for (size_t c = 0; c < 3; ++c) mean[c] = (int)((2 * sum[c] + count) / (2 * (uint64_t)count));
  for (size_t i = 0; i < pixels; ++i) {
    int differs = 0;
    if (!is_valid(valid, i)) continue;
    for (size_t c = 0; c < 3; ++c) {
      const int deviation = input[3 * i + c] + 128 - mean[c];
      differs |= deviation > FLAT_DEVIATION || deviation < -FLAT_DEVIATION;
    }
    differ += (uint32_t)differs;
  }
  return differ;
}

sky_quality sky_check(const int8_t *input, size_t pixels, const uint8_t *valid) {
  uint32_t count = 0, lit = 0, bright = 0, saturated = 0;
  for (size_t i = 0; i < pixels; ++i) {
    int low = 255, high = 0;
    if (!is_valid(valid, i)) continue;
    for (size_t c = 0; c < 3; ++c) {
      const int value = input[3 * i + c] + 128;
      if (value < low) low = value;
      if (value > high) high = value;
    }
    ++count;
    lit += high > BLACK_LEVEL;
    bright += high > DARK_LEVEL;
    saturated += low >= SATURATED_LEVEL;
  }
  if (count == 0 || (uint64_t)FEW * lit < count) return SKY_BLACK;
  if ((uint64_t)BRIGHT_PART * bright >= count &&
      (uint64_t)NOT_SATURATED * (bright - saturated) <= bright) {
    return SKY_SATURATED;
  }
  if ((uint64_t)FEW * not_of_mean_colour(input, pixels, valid, count) < count) return SKY_FLAT;
  return SKY_USABLE;
}

const char *sky_quality_name(sky_quality quality) {
  switch (quality) {
    case SKY_BLACK:
      return "black";
    case SKY_SATURATED:
      return "saturated";
    case SKY_FLAT:
      return "flat colour";
    default:
      return "usable";
  }
}

void sky_blacken(int8_t *input, size_t pixels, const uint8_t *valid) {
  for (size_t i = 0; i < pixels; ++i) {
    if (is_valid(valid, i)) continue;
    for (size_t c = 0; c < 3; ++c) input[3 * i + c] = -128;
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
