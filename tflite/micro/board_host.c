/* A computer as the board, to try all of this without hardware: frames of any size come on stdin as
   PPM, masks leave on stdout as PGM, one after another. The rows of a frame are read one at a time,
   as from a camera that has no memory for a frame.

     ffmpeg -i sky.jpg -c:v ppm -f image2pipe - | ./sky > mask.pgm

   As a camera of 320x240 would see it (ffmpeg's own default skips pixels):

     ffmpeg -i sky.jpg -vf scale=320:240:flags=area -c:v ppm -f image2pipe - | ./sky > mask.pgm */
#include <stdio.h>
#include <stdlib.h>

#include "board.h"

static uint8_t row[3 * SKY_MAX_SIDE];

static int fail(const char *what) {
  fprintf(stderr, "sky: %s\n", what);
  exit(1);
}

int board_capture(sky_input *input) {
  unsigned width, height, largest;
  char magic[2];
  if (fread(magic, 1, 2, stdin) < 2) exit(0); /* no more frames */
  if (magic[0] != 'P' || magic[1] != '6' ||
      scanf("%5u%5u%3u", &width, &height, &largest) != 3 || largest != 255 || getchar() == EOF) {
    return fail("stdin is no PPM of 8 bits (P6, 255)");
  }
  if (!sky_input_begin(input, SKY_RGB888, width, height)) return fail("a frame of this size is refused (see sky.h)");
  for (unsigned y = 0; y < height; ++y) {
    if (fread(row, 3, width, stdin) < width) return fail("the frame ends too early");
    sky_input_row(input, row);
  }
  return 1;
}

void board_show(const uint8_t *mask, uint32_t width, uint32_t height, const sky_cover *cover) {
  char header[SKY_PGM_HEADER];
  fwrite(header, 1, sky_pgm_header(width, height, header), stdout);
  fwrite(mask, 1, (size_t)width * height, stdout);
  fflush(stdout);
  fprintf(stderr, "cloud cover %d.%d %%, %d okta\n", (int)cover->permille / 10,
          (int)cover->permille % 10, (int)cover->okta);
}

void board_cannot_tell(const char *reason) { fprintf(stderr, "cannot tell: %s\n", reason); }
