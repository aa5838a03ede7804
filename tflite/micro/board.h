/* What the application (sky_app.cc) asks of a board: three functions for you to write.
   board_host.c has them for a computer, ../esp32/main/camera.c for an ESP32 with a camera. */
#ifndef BOARD_H_
#define BOARD_H_

#include <stddef.h>
#include <stdint.h>

#include "sky.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Captures a frame of any size and gives all of it to `input`: with sky_input_frame() if it is in
   memory, else with sky_input_begin() and sky_input_row(). Returns 0 when there is none. */
int board_capture(sky_input *input);

/* Takes a frame's result; `mask` has width x height bytes (sky_segment() says which), which the next
   frame overwrites. */
void board_show(const uint8_t *mask, uint32_t width, uint32_t height, const sky_cover *cover);

/* Takes, in a few words, why there is no result: "black", "saturated", "flat colour", "no frame",
   "the network failed", "not set up". */
void board_cannot_tell(const char *reason);

#ifdef __cplusplus
}
#endif

#endif /* BOARD_H_ */
