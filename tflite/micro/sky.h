/* From a camera's frame to a network's int8 input, and from its int8 output to mask and cloud cover.
   C99, integers only, no allocation. */
#ifndef SKY_H_
#define SKY_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* === A frame becomes the input === */

/* How a frame's pixels lie in memory, row by row without gaps. */
typedef enum {
  SKY_RGB888 = 0,              /* three bytes a pixel: red, green, blue */
  SKY_RGB565_BIG_ENDIAN = 1,   /* two bytes, red's byte first, as OV cameras send them */
  SKY_RGB565_LITTLE_ENDIAN = 2 /* two bytes, red's byte last, as a uint16_t of most processors */
} sky_format;

#define SKY_MAX_SIDE 32767u         /* of frame and input, pixels */
#define SKY_MAX_PIXELS (1u << 24)   /* of a frame: then no sum overflows */

/* Shrinks a frame to the network's input by averaging. Each row of the frame is looked at once, so
   rows may come one after another from the camera, and the frame need not be in memory.

   The first four are yours to set, once; the rest is not. */
typedef struct {
  int8_t *values;         /* the input: 3 * width * height */
  uint32_t width, height; /* of the input, pixels */
  uint32_t *sums;         /* memory to work in: 3 * width */

  sky_format format;
  uint32_t frame_width, frame_height;
  uint32_t frame_row; /* rows of the frame that came */
  uint32_t row;       /* rows of the input that are written */
} sky_input;

/* Begins a frame of any size and proportions; all of it goes into the input. Returns 0, and takes no
   rows, if a side is 0 or more than SKY_MAX_SIDE, or there are more than SKY_MAX_PIXELS. */
int sky_input_begin(sky_input *input, sky_format format, uint32_t frame_width,
                    uint32_t frame_height);

/* Takes the next row of the frame, frame_width pixels. To look at a part of a frame only, begin with
   the part's size and give the rows of the part.

   Each pixel of the input is the mean, rounded, of the frame's pixels whose middle it covers, as in
   Pillow's BOX resize; where the frame is smaller, it is the nearest pixel. Values are pixel - 128;
   the 5 and 6 bits of RGB565 are spread over 0 to 255. */
void sky_input_row(sky_input *input, const uint8_t *pixels);

/* Whether all rows of the frame came, so that all of the input is written. */
int sky_input_complete(const sky_input *input);

/* All of this for a frame in memory. Returns 0 if its size is refused. `pixels` may be the memory of
   the input itself, if the frame is RGB888 of the input's size: then nothing is in memory twice. */
int sky_input_frame(sky_input *input, sky_format format, uint32_t frame_width,
                    uint32_t frame_height, const uint8_t *pixels);

/* === Where the camera sees sky ===

   `valid`, below, is NULL (everywhere) or has one bit for each of the input's pixels, 1 where there
   is sky: pixel i, counted row by row, is bit 7 - i % 8 of byte i / 8. `ddunet horizon --c-array`
   writes it. */

/* How many bytes so many pixels have at one bit each. */
#define SKY_PACKED_BYTES(pixels) (((pixels) + 7) / 8)

/* What can be told of a frame before the network sees it. */
typedef enum {
  SKY_USABLE = 0,
  SKY_BLACK = 1,     /* no light: a closed roof, a lens cap */
  SKY_SATURATED = 2, /* white: the exposure was too long */
  SKY_FLAT = 3       /* one colour: the sensor or its cable is broken */
} sky_quality;

/* Looks at an input of `pixels` RGB pixels; those that are not valid do not count.
   What shows something else than the sky, such as a room, is not recognized here. */
sky_quality sky_check(const int8_t *values, size_t pixels, const uint8_t *valid);

/* A word for people: "usable", "black", "saturated", "flat colour". */
const char *sky_quality_name(sky_quality quality);

/* Makes all pixels black that are not valid: the network was trained to see them so. */
void sky_blacken(int8_t *values, size_t pixels, const uint8_t *valid);

/* === The output becomes mask and cloud cover === */

#define SKY_CLEAR 0       /* mask: sky */
#define SKY_CLOUD 255     /* mask: cloud, of a network with one channel */
#define SKY_NOT_VALID 128 /* mask: outside the horizon; not counted */

typedef struct {
  uint32_t valid;    /* pixels that count */
  uint32_t cloudy;   /* those of them that are cloud */
  int32_t permille;  /* cloudy share in tenths of a percent, 0 to 1000; -1 if no pixel counts */
  int32_t okta;      /* in eighths: 0 is a sky without any cloud, 8 one without any gap; or -1 */
} sky_cover;

/* Mask and cloud cover of an output (pixels, channels).

   One channel: cloud where output >= threshold; the mask has 0, 255 and 128. More: the class of the
   largest channel, the first of equal ones; the mask has the class (0 is sky, every other counts as
   cloud) and 128.
   `mask`: `pixels` bytes; it may be `output`, cast. */
void sky_segment(const int8_t *output, size_t pixels, size_t channels, int8_t threshold,
                 const uint8_t *valid, uint8_t *mask, sky_cover *cover);

/* Packs a mask at one bit a pixel, 1 for cloud, in the order of `valid`: SKY_PACKED_BYTES(pixels)
   bytes. `packed` may be `mask`. */
void sky_pack(const uint8_t *mask, size_t pixels, uint8_t *packed);

#define SKY_PGM_HEADER 29 /* bytes that the longest header needs */

/* Writes what stands before a mask's bytes in a file of the format PGM, and returns its length. */
size_t sky_pgm_header(uint32_t width, uint32_t height, char *header);

#ifdef __cplusplus
}
#endif

#endif /* SKY_H_ */
