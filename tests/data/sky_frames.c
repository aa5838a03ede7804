/* Shrinks frames with sky.c, as a camera that sends rows. stdin: for each frame five uint32_t
   (format, its width and height, the input's width and height) and its bytes; stdout: the inputs.
   Each row and each result has memory of exactly its size, so that sanitizers see every slip. */
#include <stdio.h>
#include <stdlib.h>

#include "sky.h"

int main(void) {
  uint32_t about[5];
  while (fread(about, sizeof(about), 1, stdin) == 1) {
    const sky_format format = (sky_format)about[0];
    const size_t row_bytes = (size_t)about[1] * (format == SKY_RGB888 ? 3 : 2);
    const size_t size = (size_t)3 * about[3] * about[4];
    sky_input input;
    input.width = about[3];
    input.height = about[4];
    input.values = malloc(size);
    input.sums = malloc(sizeof(uint32_t) * 3 * about[3]);
    if (!sky_input_begin(&input, format, about[1], about[2])) return 2;
    for (uint32_t y = 0; y < about[2]; ++y) {
      uint8_t *row = malloc(row_bytes);
      if (sky_input_complete(&input) || fread(row, row_bytes, 1, stdin) != 1) return 3;
      sky_input_row(&input, row);
      free(row);
    }
    if (!sky_input_complete(&input)) return 4;
    fwrite(input.values, size, 1, stdout);
    free(input.values);
    free(input.sums);
  }
  return 0;
}
