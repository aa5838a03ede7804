/* The camera's pins of some boards, from the examples of espressif/esp32-camera. */
#ifndef CAMERA_PINS_H_
#define CAMERA_PINS_H_

#include "sdkconfig.h"

#if CONFIG_SKY_CAMERA_S3_EYE
#define PIN_PWDN (-1)
#define PIN_RESET (-1)
#define PIN_XCLK 15
#define PIN_SIOD 4
#define PIN_SIOC 5
#define PIN_D7 16
#define PIN_D6 17
#define PIN_D5 18
#define PIN_D4 12
#define PIN_D3 10
#define PIN_D2 8
#define PIN_D1 9
#define PIN_D0 11
#define PIN_VSYNC 6
#define PIN_HREF 7
#define PIN_PCLK 13
#elif CONFIG_SKY_CAMERA_XIAO_S3
#define PIN_PWDN (-1)
#define PIN_RESET (-1)
#define PIN_XCLK 10
#define PIN_SIOD 40
#define PIN_SIOC 39
#define PIN_D7 48
#define PIN_D6 11
#define PIN_D5 12
#define PIN_D4 14
#define PIN_D3 16
#define PIN_D2 18
#define PIN_D1 17
#define PIN_D0 15
#define PIN_VSYNC 38
#define PIN_HREF 47
#define PIN_PCLK 13
#elif CONFIG_SKY_CAMERA_AI_THINKER
#define PIN_PWDN 32
#define PIN_RESET (-1)
#define PIN_XCLK 0
#define PIN_SIOD 26
#define PIN_SIOC 27
#define PIN_D7 35
#define PIN_D6 34
#define PIN_D5 39
#define PIN_D4 36
#define PIN_D3 21
#define PIN_D2 19
#define PIN_D1 18
#define PIN_D0 5
#define PIN_VSYNC 25
#define PIN_HREF 23
#define PIN_PCLK 22
#else
#error "choose a board: idf.py menuconfig, Sky camera"
#endif

#endif /* CAMERA_PINS_H_ */
