/* What the files of this folder give each other. */
#ifndef ESP32_H_
#define ESP32_H_

#include "sky.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Starts the camera (camera.c). Returns 0, having said why, if it cannot. */
int camera_start(void);

/* Connects to Wi-Fi and starts the page (web.c); says why, if it cannot. */
void web_start(void);

/* Gives the page a frame's result, `mask` as in board_show(), or why there is none. */
void web_show(const uint8_t *mask, uint32_t width, uint32_t height, const sky_cover *cover);
void web_cannot_tell(const char *reason);

#ifdef __cplusplus
}
#endif

#endif /* ESP32_H_ */
