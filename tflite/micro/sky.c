#include "sky.h"

/* === A frame becomes the input === */

/* Along one side, box k of `boxes` covers the pixels box_start(k) to box_end(k) - 1 of `pixels`. A
   pixel belongs to the box that covers its middle. If there are more boxes than pixels, a box takes
   the one pixel that covers its own middle. All products fit: sides are at most SKY_MAX_SIDE. */
static uint32_t box_start(uint32_t k, uint32_t boxes, uint32_t pixels) {
  if (pixels < boxes) return (2 * k + 1) * pixels / (2 * boxes);
  return (2 * k * pixels + boxes) / (2 * boxes);
}

static uint32_t box_end(uint32_t k, uint32_t boxes, uint32_t pixels) {
  if (pixels < boxes) return box_start(k, boxes, pixels) + 1;
  return box_start(k + 1, boxes, pixels);
}

static int is_side(uint32_t side) { return side > 0 && side <= SKY_MAX_SIDE; }

static void clear_sums(sky_input *input) {
  for (uint32_t i = 0; i < 3 * input->width; ++i) input->sums[i] = 0;
}

int sky_input_begin(sky_input *input, sky_format format, uint32_t frame_width,
                    uint32_t frame_height) {
  input->frame_row = input->row = 0;
  input->frame_width = input->frame_height = 0; /* a refused frame takes no rows */
  if (!is_side(input->width) || !is_side(input->height)) return 0;
  if (!is_side(frame_width) || !is_side(frame_height)) return 0;
  if (frame_width * frame_height > SKY_MAX_PIXELS) return 0;
  input->format = format;
  input->frame_width = frame_width;
  input->frame_height = frame_height;
  clear_sums(input);
  return 1;
}

static void add_rgb888(const uint8_t *pixel, uint32_t *sum) {
  sum[0] += pixel[0];
  sum[1] += pixel[1];
  sum[2] += pixel[2];
}

static void add_rgb565(const uint8_t *pixel, int big_endian, uint32_t *sum) {
  const uint32_t high = pixel[big_endian ? 0 : 1];
  const uint32_t low = pixel[big_endian ? 1 : 0];
  const uint32_t red = high >> 3;
  const uint32_t green = ((high & 7u) << 3) | (low >> 5);
  const uint32_t blue = low & 31u;
  sum[0] += (red << 3) | (red >> 2);
  sum[1] += (green << 2) | (green >> 4);
  sum[2] += (blue << 3) | (blue >> 2);
}

static void add_row(sky_input *input, const uint8_t *pixels) {
  for (uint32_t x = 0; x < input->width; ++x) {
    uint32_t *sum = input->sums + 3 * x;
    const uint32_t end = box_end(x, input->width, input->frame_width);
    for (uint32_t i = box_start(x, input->width, input->frame_width); i < end; ++i) {
      if (input->format == SKY_RGB888) {
        add_rgb888(pixels + 3 * i, sum);
      } else {
        add_rgb565(pixels + 2 * i, input->format == SKY_RGB565_BIG_ENDIAN, sum);
      }
    }
  }
}

/* Writes the means of the sums of `rows` rows of the frame as the next row of the input. */
static void write_row(sky_input *input, uint32_t rows) {
  int8_t *value = input->values + (size_t)3 * input->width * input->row;
  for (uint32_t x = 0; x < input->width; ++x) {
    const uint32_t columns = box_end(x, input->width, input->frame_width) -
                             box_start(x, input->width, input->frame_width);
    const uint32_t count = rows * columns;
    for (uint32_t c = 0; c < 3; ++c) {
      const uint32_t mean = (input->sums[3 * x + c] + count / 2) / count;
      *value++ = (int8_t)((int)mean - 128);
    }
  }
  ++input->row;
}

void sky_input_row(sky_input *input, const uint8_t *pixels) {
  int wrote = 0;
  if (input->frame_row >= input->frame_height) return;
  add_row(input, pixels);
  ++input->frame_row;
  /* more than one row only where the frame has fewer rows than the input */
  while (input->row < input->height &&
         box_end(input->row, input->height, input->frame_height) == input->frame_row) {
    write_row(input, input->frame_row - box_start(input->row, input->height, input->frame_height));
    wrote = 1;
  }
  if (wrote) clear_sums(input);
}

int sky_input_complete(const sky_input *input) {
  return input->frame_height > 0 && input->frame_row == input->frame_height;
}

int sky_input_frame(sky_input *input, sky_format format, uint32_t frame_width,
                    uint32_t frame_height, const uint8_t *pixels) {
  const size_t row_bytes = (size_t)frame_width * (format == SKY_RGB888 ? 3 : 2);
  if (!sky_input_begin(input, format, frame_width, frame_height)) return 0;
  for (uint32_t y = 0; y < frame_height; ++y) sky_input_row(input, pixels + row_bytes * y);
  return 1;
}

/* === Where the camera sees sky === */

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

static int is_valid(const uint8_t *valid, size_t i) {
  return valid == NULL || (valid[i / 8] >> (7 - i % 8) & 1) != 0;
}

/* How many valid pixels differ from the mean colour. */
static uint32_t not_of_mean_colour(const int8_t *values, size_t pixels, const uint8_t *valid,
                                   uint32_t count) {
  uint64_t sum[3] = {0, 0, 0};
  int mean[3];
  uint32_t differ = 0;
  for (size_t i = 0; i < pixels; ++i) {
    if (!is_valid(valid, i)) continue;
    for (size_t c = 0; c < 3; ++c) sum[c] += (uint64_t)(values[3 * i + c] + 128);
  }
  for (size_t c = 0; c < 3; ++c) mean[c] = (int)((2 * sum[c] + count) / (2 * (uint64_t)count));
  for (size_t i = 0; i < pixels; ++i) {
    int differs = 0;
    if (!is_valid(valid, i)) continue;
    for (size_t c = 0; c < 3; ++c) {
      const int deviation = values[3 * i + c] + 128 - mean[c];
      differs |= deviation > FLAT_DEVIATION || deviation < -FLAT_DEVIATION;
    }
    differ += (uint32_t)differs;
  }
  return differ;
}

sky_quality sky_check(const int8_t *values, size_t pixels, const uint8_t *valid) {
  uint32_t count = 0, lit = 0, bright = 0, saturated = 0;
  for (size_t i = 0; i < pixels; ++i) {
    int low = 255, high = 0;
    if (!is_valid(valid, i)) continue;
    for (size_t c = 0; c < 3; ++c) {
      const int value = values[3 * i + c] + 128;
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
  if ((uint64_t)FEW * not_of_mean_colour(values, pixels, valid, count) < count) return SKY_FLAT;
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

void sky_blacken(int8_t *values, size_t pixels, const uint8_t *valid) {
  for (size_t i = 0; i < pixels; ++i) {
    if (is_valid(valid, i)) continue;
    for (size_t c = 0; c < 3; ++c) values[3 * i + c] = -128;
  }
}

/* === The output becomes mask and cloud cover === */

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
    if (!is_valid(valid, i)) {
      mask[i] = SKY_NOT_VALID;
      continue;
    }
    mask[i] = label;
    ++cover->valid;
    cover->cloudy += label != SKY_CLEAR;
  }
  finish(cover);
}

void sky_pack(const uint8_t *mask, size_t pixels, uint8_t *packed) {
  uint8_t byte = 0;
  for (size_t i = 0; i < pixels; ++i) {
    const int cloud = mask[i] != SKY_CLEAR && mask[i] != SKY_NOT_VALID;
    byte = (uint8_t)(byte << 1 | cloud);
    if (i % 8 == 7) packed[i / 8] = byte;
  }
  if (pixels % 8 > 0) packed[pixels / 8] = (uint8_t)(byte << (8 - pixels % 8));
}

/* Writes a number's decimal digits, and returns where they end. */
static char *write_number(char *text, uint32_t number) {
  char digits[10]; /* the last one first */
  size_t count = 0;
  do {
    digits[count++] = (char)('0' + number % 10);
    number /= 10;
  } while (number > 0);
  while (count > 0) *text++ = digits[--count];
  return text;
}

static char *write_text(char *text, const char *from) {
  while (*from != '\0') *text++ = *from++;
  return text;
}

size_t sky_pgm_header(uint32_t width, uint32_t height, char *header) {
  char *end = write_text(header, "P5\n");
  end = write_number(end, width);
  end = write_text(end, " ");
  end = write_number(end, height);
  end = write_text(end, "\n255\n");
  return (size_t)(end - header);
}
