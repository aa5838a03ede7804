/* From a camera's frame to a network's int8 input, and from its int8 output to mask and cloud cover.
   C99, no allocation, no floating point. */
#ifndef SKY_H_
#define SKY_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SKY_CLEAR 0       /* mask: sky */
#define SKY_CLOUD 255     /* mask: cloud, of a network with one channel */
#define SKY_NOT_VALID 128 /* mask: outside the horizon; not counted */

typedef struct {
  uint32_t valid;    /* pixels that count */
  uint32_t cloudy;   /* those of them that are cloud */
  int32_t permille;  /* cloudy share in tenths of a percent, 0 to 1000; -1 if no pixel counts */
  int32_t okta;      /* in eighths: 0 is a sky without any cloud, 8 one without any gap; or -1 */
} sky_cover;

/* A window of a frame of `frame_width` pixels a row, at (left, top), to input values pixel - 128.

   `input` has 3 * width * height values. It may be `frame` itself, cast to int8_t *, if the window
   is the whole frame of an RGB888 camera: then nothing needs memory twice. */
void sky_input_rgb888(const uint8_t *frame, size_t frame_width, size_t left, size_t top,
                      size_t width, size_t height, int8_t *input);

/* The same from RGB565, two bytes a pixel: high byte first where `big_endian` (as most cameras send
   them), else low byte first. 5 and 6 bits are spread over 0 to 255. */
void sky_input_rgb565(const uint8_t *frame, int big_endian, size_t frame_width, size_t left,
                      size_t top, size_t width, size_t height, int8_t *input);

/* What can be told of a frame before the network sees it. */
typedef enum {
  SKY_USABLE = 0,
  SKY_BLACK = 1,     /* no light: a closed roof, a lens cap */
  SKY_SATURATED = 2, /* white: the exposure was too long */
  SKY_FLAT = 3       /* one colour: the sensor or its cable is broken */
} sky_quality;

/* Looks at an input of `pixels` RGB pixels. `valid`: NULL, or for each pixel whether the camera sees
   sky there (not 0); other pixels do not count.
   What shows something else than the sky, such as a room, is not recognized here. */
sky_quality sky_check(const int8_t *input, size_t pixels, const uint8_t *valid);

/* A word for people: "usable", "black", "saturated", "flat colour". */
const char *sky_quality_name(sky_quality quality);

/* Makes all pixels black that are not valid: the network was trained to see them so.
   `valid`: for each pixel, not 0 where the camera sees sky; NULL changes nothing. */
void sky_blacken(int8_t *input, size_t pixels, const uint8_t *valid);

/* Mask and cloud cover of an output (pixels, channels).

   One channel: cloud where output >= threshold; the mask has 0, 255 and 128. More: the class of the
   largest channel, the first of equal ones; the mask has the class (0 is sky, every other counts as
   cloud) and 128.
   `valid`: NULL, or for each pixel whether the camera sees sky there (not 0).
   `mask`: `pixels` bytes; for one channel it may be `output`, cast. */
void sky_segment(const int8_t *output, size_t pixels, size_t channels, int8_t threshold,
                 const uint8_t *valid, uint8_t *mask, sky_cover *cover);

#ifdef __cplusplus
}
#endif

#endif /* SKY_H_ */
