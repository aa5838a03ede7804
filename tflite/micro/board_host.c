/* A computer as the board: frames come as raw RGB888 on stdin, masks leave as raw bytes on stdout.

     ffmpeg -i sky.jpg -vf scale=128:128 -f rawvideo -pix_fmt rgb24 - | ./sky > mask.raw */
#include <stdio.h>

#include "board.h"

int board_capture(uint8_t *rgb, int width, int height) {
  const size_t size = (size_t)width * (size_t)height * 3;
  return fread(rgb, 1, size, stdin) == size;
}

void board_show(const uint8_t *mask, int width, int height, const sky_cover *cover) {
  fwrite(mask, 1, (size_t)width * (size_t)height, stdout);
  fflush(stdout);
  fprintf(stderr, "cloud cover %d.%d %%, %d okta\n", (int)cover->permille / 10,
          (int)cover->permille % 10, (int)cover->okta);
}

void board_cannot_tell(const char *reason) { fprintf(stderr, "cannot tell: %s\n", reason); }
