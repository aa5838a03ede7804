/* What main.cc asks of a board. */
#ifndef BOARD_H_
#define BOARD_H_

#include <stdint.h>

#include "sky.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Fills `rgb` with a frame of width x height pixels, RGB888. Returns 0 when there is none. */
int board_capture(uint8_t *rgb, int width, int height);

/* Takes a frame's result; `mask` has width x height bytes. */
void board_show(const uint8_t *mask, int width, int height, const sky_cover *cover);

/* Takes why a frame says nothing of the sky: "black", "saturated" or "flat colour". */
void board_cannot_tell(const char *reason);

#ifdef __cplusplus
}
#endif

#endif /* BOARD_H_ */
